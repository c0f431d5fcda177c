"""Two gloo processes give the numbers of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_one(data_dir, tmp_path):
    def numbers(processes):
        folder = tmp_path / str(processes)
        environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, TESTS / "two_processes.py", str(processes), data_dir, folder]
        run = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=folder.parent, env=environment)
        assert run.returncode == 0, run.stderr[-3000:]
        (line,) = [line for line in run.stdout.splitlines() if line.startswith("numbers: ")]
        assert run.stdout.count("test of Model") == 1  # one rank speaks
        return json.loads(line.removeprefix("numbers: "))

    one, two = numbers(1), numbers(2)
    for found in (one, two):
        assert found.pop("test/samples_per_second") > 0
    assert {"test/fid_quarters", "test/recall", "ood/MNIST/auroc_likelihood", "val/fid_quarters"} <= one.keys()
    # the weights of a VAE that two processes train are others, so its distance is not compared
    assert one.pop("val/fid_quarters") > 0 and two.pop("val/fid_quarters") > 0
    assert two == pytest.approx(one, rel=1e-6)
