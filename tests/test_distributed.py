"""Two gloo processes give the numbers of one, and train the same flow."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import flow_processes
import killed_run
import moments_processes
import one_or_two
import processes
import pytest
import torch
import two_processes
from test_runs import ARGS, curves, differing, on, state
from torch.testing import assert_close

TESTS = Path(__file__).parent


def run_on(number, main, *args, folder):
    """What processes print that succeed together, the first of them first."""
    ended = processes.run_together(number, main, number, *args, folder=folder)
    assert all(one.returncode == 0 for one in ended), "\n".join(one.stderr[-3000:] for one in ended)
    return [one.stdout for one in ended]


def numbers_after(prefix, outputs):
    (line,) = [line for line in "".join(outputs).splitlines() if line.startswith(prefix)]
    return json.loads(line.removeprefix(prefix))


@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_one(data_dir, tmp_path):
    def numbers(number):
        folder = tmp_path / str(number)
        out = run_on(number, two_processes.main, data_dir, folder, folder=folder)
        assert "".join(out).count("test of Model") == 1  # one rank speaks
        return numbers_after("numbers: ", out)

    one, two = numbers(1), numbers(2)
    for found in (one, two):
        assert found.pop("test/samples_per_second") > 0
    assert {"test/fid_quarters", "test/recall", "ood/MNIST/auroc_likelihood", "val/fid_quarters"} <= one.keys()
    assert one["ddpm test/fid_quarters"] > 0  # the same noise, whoever draws it
    # the weights of a VAE that two processes train are others, so its distance is not compared
    assert one.pop("val/fid_quarters") > 0 and two.pop("val/fid_quarters") > 0
    assert two == pytest.approx(one, rel=1e-6)


def test_a_process_without_images_knows_the_means_of_the_others(tmp_path):
    one, two = (run_on(number, moments_processes.main, folder=tmp_path / str(number)) for number in (1, 2))
    expected = numbers_after("rank 0: ", one)
    assert expected["a"][0] == 5.5 and expected["b"][3] == 12
    assert numbers_after("rank 0: ", two) == numbers_after("rank 1: ", two) == expected


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["act", "batch"])
def test_normalisations_start_and_run_over_all_processes(norm, tmp_path):
    for number in (1, 2):
        run_on(number, flow_processes.main, norm, tmp_path / f"{number}.pt", folder=tmp_path)
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert_close(two, one, atol=2e-4, rtol=1e-3)


LAST = Path("runs", "killed", "version_0", "checkpoints", "last.ckpt")
TWO = [*ARGS, "--data.batch_size=8", "--trainer.devices=2", "--trainer.strategy=ddp"]


def start(data_dir, folder, moment="rank"):
    """A run of two processes in whose third batch something happens, the first time; see killed_run.py."""
    return processes.run_together(2, killed_run.main, moment, 3, TWO, folder=folder, **on(data_dir))


@pytest.fixture(scope="session")
def undisturbed(data_dir, tmp_path_factory):
    """The folder of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert [done.returncode for done in start(data_dir, folder, moment="never")] == [0, 0]
    return folder / LAST.parents[1]


def assert_ends_as(undisturbed, run):
    weights = [state(run, "last.ckpt")["state_dict"] for run in (run, undisturbed)]
    assert not differing(*weights) and curves(run)[-1] == curves(undisturbed)[-1]


@pytest.mark.slow
def test_a_killed_process_ends_the_job_with_its_reason(data_dir, tmp_path):
    """Started as a user does: the first process starts the second."""
    command = [sys.executable, TESTS / "killed_run.py", "rank", "3", *TWO]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | on(str(data_dir)), capture_output=True, text=True,
                          timeout=60 + 30)  # fmt: skip  # a minute, beside the time to start
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert re.search(
        "error: another process of this run has ended: .* was killed|terminated with code -9", done.stderr
    ), done.stderr[-2000:]


def elastic(moment, n, args):
    """What ``torchrun --standalone --nproc_per_node 2 --max-restarts 1`` does, with processes that are forked."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(1, 1, 2, max_restarts=1, start_method="fork", rdzv_backend="c10d",
                          rdzv_endpoint="localhost:0", run_id="tests", monitor_interval=0.1)  # fmt: skip
    elastic_launch(config, killed_run.main)(moment, n, args)


@pytest.mark.slow
def test_torchrun_starts_the_job_again_from_its_last_checkpoint(undisturbed, data_dir, tmp_path):
    environment = on(data_dir) | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": 1}
    done = processes.run(elastic, "rank", 3, TWO, folder=tmp_path, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continuing from runs/killed/version_0/checkpoints/last.ckpt, step 2" in done.stderr
    (run,) = (tmp_path / "runs" / "killed").iterdir()
    assert_ends_as(undisturbed, run)


@pytest.mark.slow
def test_a_signal_to_one_process_is_one_to_all(undisturbed, data_dir, tmp_path):
    asked = [128 + signal.SIGTERM] * 2
    done = start(data_dir, tmp_path, moment="rank-SIGTERM")
    said = "".join(one.stderr for one in done)
    assert [one.returncode for one in done] == asked, said[-3000:]
    assert said.count("SIGTERM: saved") == 1 and "Traceback" not in said
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 3
    done = start(data_dir, tmp_path / "early", moment="rank-sanity")
    assert [one.returncode for one in done] == asked and "step 1" in done[0].stderr, done[0].stderr[-3000:]
    done = start(data_dir, tmp_path, moment="rank-SIGUSR1")
    assert [one.returncode for one in done] == [0, 0] and "SIGUSR1: saved" in done[0].stderr, done[0].stderr[-3000:]
    assert_ends_as(undisturbed, tmp_path / LAST.parents[1])


@pytest.mark.slow
def test_a_loss_of_one_process_that_is_nan_stops_all(data_dir, tmp_path):
    done = start(data_dir, tmp_path, moment="rank-nan")
    said = "".join(one.stderr for one in done)
    assert [one.returncode for one in done] == [1, 1] and "Traceback" not in said, said[-3000:]
    assert len(re.findall(r"error: step 3: loss is nan.* The last checkpoint: .*last\.ckpt", said)) == 1
    saved = torch.load(tmp_path / LAST, weights_only=True)
    assert saved["global_step"] == 2 and all(v.isfinite().all() for v in saved["state_dict"].values())


@pytest.mark.slow
def test_two_processes_learn_as_one_with_the_doubled_batch(tmp_path):
    """Batch norm is synchronised; of Pix2Pix see test_adversarial.py."""
    one, two = (numbers_after("curves: ", run_on(n, one_or_two.main, folder=tmp_path / str(n))) for n in (1, 2))
    assert len(one) == 11 and one.keys() == two.keys()
    for name, losses in one.items():
        assert losses.keys() == two[name].keys() and losses
        for term, curve in losses.items():
            # Adam's first steps go by the sign of a gradient, be it one of rounding errors
            near = pytest.approx(curve, rel=5e-3 if "Latent" in name else 1e-4, abs=1e-4)
            assert len(curve) >= 3 and two[name][term] == near, f"{name} {term}"
