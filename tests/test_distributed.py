"""Two gloo processes give the numbers of one, and train the same flow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

TESTS = Path(__file__).parent


def run_script(name, folder, *args):
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, TESTS / name, *map(str, args)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=folder, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_one(data_dir, tmp_path):
    def numbers(processes):
        folder = tmp_path / str(processes)
        out = run_script("two_processes.py", tmp_path, processes, data_dir, folder)
        (line,) = [line for line in out.splitlines() if line.startswith("numbers: ")]
        assert out.count("test of Model") == 1  # one rank speaks
        return json.loads(line.removeprefix("numbers: "))

    one, two = numbers(1), numbers(2)
    for found in (one, two):
        assert found.pop("test/samples_per_second") > 0
    assert {"test/fid_quarters", "test/recall", "ood/MNIST/auroc_likelihood", "val/fid_quarters"} <= one.keys()
    assert one["ddpm test/fid_quarters"] > 0  # the same noise, whoever draws it
    # the weights of a VAE that two processes train are others, so its distance is not compared
    assert one.pop("val/fid_quarters") > 0 and two.pop("val/fid_quarters") > 0
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["act", "batch"])
def test_normalisations_start_and_run_over_all_processes(norm, tmp_path):
    for processes in (1, 2):
        run_script("flow_processes.py", tmp_path, processes, norm, tmp_path / f"{processes}.pt")
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert_close(two, one, atol=2e-4, rtol=1e-3)
