"""Two gloo processes give the numbers of one, and train the same flow."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_runs import ARGS, curves, differing, state
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


TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--max_restarts=1", "--standalone"]
LAST = Path("runs", "killed", "version_0", "checkpoints", "last.ckpt")


def start(data_dir, folder, *launcher, moment="rank"):
    """A run of two processes in whose third batch something happens, the first time; see killed_run.py."""
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1",
                                "LIT_GENERATIVE_DATA": str(data_dir),
                                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # fmt: skip
    processes = ["--data.batch_size=8", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, *launcher, TESTS / "killed_run.py", moment, "3", *ARGS, *processes]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    """The folder of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert start(data_dir, folder, *TORCHRUN, moment="never").returncode == 0
    return folder / LAST.parents[1]


def assert_ends_as(undisturbed, run):
    weights = [state(run, "last.ckpt")["state_dict"] for run in (run, undisturbed)]
    assert not differing(*weights) and curves(run)[-1] == curves(undisturbed)[-1]


@pytest.mark.slow
def test_a_killed_process_ends_the_job_with_its_reason(data_dir, tmp_path):
    begun = time.monotonic()
    done = start(data_dir, tmp_path)
    assert done.returncode != 0 and time.monotonic() - begun < 60 + 30  # beside the time to start
    assert "Traceback" not in done.stderr
    assert re.search(
        "error: another process of this run has ended: .* was killed|terminated with code -9", done.stderr
    ), done.stderr[-2000:]


@pytest.mark.slow
def test_torchrun_starts_the_job_again_from_its_last_checkpoint(undisturbed, data_dir, tmp_path):
    done = start(data_dir, tmp_path, *TORCHRUN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on from runs/killed/version_0/checkpoints/last.ckpt, step 2" in done.stderr
    (run,) = (tmp_path / "runs" / "killed").iterdir()
    assert_ends_as(undisturbed, run)


@pytest.mark.slow
def test_a_signal_to_one_process_is_one_to_all(undisturbed, data_dir, tmp_path):
    done = start(data_dir, tmp_path, moment="rank-SIGTERM")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-3000:]
    assert done.stderr.count("SIGTERM: saved") == 1 and "Traceback" not in done.stderr
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 3
    (early := tmp_path / "early").mkdir()
    done = start(data_dir, early, moment="rank-sanity")
    assert done.returncode == 128 + signal.SIGTERM and "step 1" in done.stderr, done.stderr[-3000:]
    done = start(data_dir, tmp_path, moment="rank-SIGUSR1")
    assert done.returncode == 0 and "SIGUSR1: saved" in done.stderr, done.stderr[-3000:]
    assert_ends_as(undisturbed, tmp_path / LAST.parents[1])


@pytest.mark.slow
def test_a_loss_of_one_process_that_is_no_number_stops_all(data_dir, tmp_path):
    done = start(data_dir, tmp_path, moment="rank-nan")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert len(re.findall(r"error: step 3: loss is nan.* The last checkpoint: .*last\.ckpt", done.stderr)) == 1
    saved = torch.load(tmp_path / LAST, weights_only=True)
    assert saved["global_step"] == 2 and all(v.isfinite().all() for v in saved["state_dict"].values())


@pytest.mark.slow
def test_two_processes_learn_as_one_with_the_doubled_batch(tmp_path):
    """Batch norm is synchronised; of Pix2Pix see test_adversarial.py."""

    def losses_of(*launcher):
        environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, TESTS / "one_or_two.py"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=environment)
        assert run.returncode == 0, run.stderr[-3000:]
        (line,) = [line for line in run.stdout.splitlines() if line.startswith("curves: ")]
        return json.loads(line.removeprefix("curves: "))

    one, two = losses_of(), losses_of("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    assert len(one) == 11 and one.keys() == two.keys()
    for name, losses in one.items():
        assert losses.keys() == two[name].keys() and losses
        for term, curve in losses.items():
            # Adam's first steps go by the sign of a gradient, be it one of rounding errors
            near = pytest.approx(curve, rel=5e-3 if "Latent" in name else 1e-4, abs=1e-4)
            assert len(curve) >= 3 and two[name][term] == near, f"{name} {term}"
