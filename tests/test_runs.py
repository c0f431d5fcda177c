"""Runs that are killed, and go on as if they had not been."""

import csv
import errno
import signal

import killed_run
import processes
import pytest
import small_models
import torch
from comparison import differing
from test_contract import MODELS

import train
from benchmarks.scenes.streets import write
from lit_generative.checkpoints.last import AtomicCheckpointIO, newest_checkpoint
from lit_generative.training.run_logger import RunLogger
from lit_generative.utils.files import atomic_write

ARGS = ["fit", "--model=VAE", "--data=FashionMNIST", "--data.batch_size=16", "--data.val_size=16", "--model.hidden=[8]",
        "--model.latent=2", "--model.lr_decay_start=0.5", "--name=killed", "--trainer.max_epochs=3",
        "--trainer.log_every_n_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--save_every=1", "--trainer.enable_model_summary=false", "--resume"]  # fmt: skip
AVERAGED = "--trainer.callbacks=" + '[{"class_path": "callbacks.EMA", "init_args": {"networks": ["decoder"]}}]'


def attempt(folder, data_dir, moment, n, *more):
    """A run of its own process, to which something happens; see killed_run.py."""
    return processes.run(killed_run.main, moment, n, [*ARGS, AVERAGED, *more], folder=folder, **on(data_dir))


def on(data_dir):
    return {"LIT_GENERATIVE_DATA": data_dir}


def curves(run):
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v and k != "train/images_per_second"} for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: (int(row["step"]), sorted(row)))


def state(run, name):
    """What a checkpoint holds, without the clock's part and the paths."""
    checkpoint = torch.load(run / "checkpoints" / name, weights_only=True)
    del checkpoint["lit_generative"]["training_seconds"]
    for saved in checkpoint["callbacks"].values():
        for key in [key for key in saved if "path" in key or key == "best_k_models"]:
            del saved[key]
    return checkpoint


@pytest.fixture(scope="session")
def streets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "streets"
    write(folder, "pairs", {"train": 96, "val": 16}, size=20, seed=0)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda cls: cls.__name__)
def test_every_model_that_is_killed_ends_as_one_that_is_not(model, streets, data_dir, tmp_path):
    """In a batch, half-way through a checkpoint, after an epoch, before a line of the curves, in a validation.

    Some end by themselves before that, at their last step, and go on to another.
    """
    name = model.__name__
    args = small_models.command(name, streets)

    def attempt(folder, moment, n, *more):
        folder = tmp_path / folder
        done = processes.run(killed_run.main, moment, n, [*args, *more], model, folder=folder, **on(data_dir))
        expected = 0 if moment == "never" else -signal.SIGKILL
        assert done.returncode == expected, f"{moment}: {done.stderr[-3000:]}"

    attempt("whole", "never", 0)
    if name in small_models.ENDS:
        attempt("killed", "never", 0, f"--trainer.max_steps={small_models.ENDS[name]}")
    for moment, n in small_models.KILLS:
        attempt("killed", moment, n)
    attempt("killed", "never", 0)
    a, b = (tmp_path / kind / "runs" / "run" / "version_0" for kind in ("whole", "killed"))
    assert len(curves(a)) >= 5 and curves(b) == curves(a)
    assert state(a, "last.ckpt")["global_step"] == small_models.STEPS.get(name, 10)
    assert [path.name for path in b.parent.iterdir()] == ["version_0"]
    for checkpoint in ("best.ckpt", "last.ckpt"):
        assert differing(state(b, checkpoint), state(a, checkpoint)) == []


@pytest.mark.parametrize(
    ("more", "steps"),
    [(["--trainer.check_val_every_n_epoch=2"], 15), (["--trainer.max_steps=8", "--trainer.val_check_interval=3"], 8),
     (["--trainer.accumulate_grad_batches=2", "--trainer.max_steps=4"], 4)],
)  # fmt: skip
def test_the_last_checkpoint_is_of_the_last_step(more, steps, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    train.main([argument for argument in ARGS if "save_every" not in argument] + more)
    assert state(tmp_path / "runs" / "killed" / "version_0", "last.ckpt")["global_step"] == steps


def saved(path, step=0):
    AtomicCheckpointIO().save_checkpoint(
        {"class_path": "a", "state_dict": {}, "optimizer_states": [], "global_step": step}, path
    )


def test_a_checkpoint_is_replaced_by_a_whole_one_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved(path, 1)

    def torn(checkpoint, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", torn)
    keeper = AtomicCheckpointIO()
    with pytest.warns(UserWarning, match=r"last\.ckpt could not be written .*No space left.*the run goes on without"):
        keeper.save_checkpoint({}, path)
    keeper.remove_checkpoint(path)  # the only one that there is
    assert torch.load(path, weights_only=True)["global_step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with atomic_write(path, "w") as file:
        file.write("one")
        assert not path.exists()
    with pytest.raises(OSError, match="full"), atomic_write(path, "w") as file:
        file.write("tw")
        raise OSError("full")
    with atomic_write(path, "w", shared=True) as one, atomic_write(path, "w") as other:
        assert one.name != other.name
        one.write("three")
    assert path.read_text() == "three" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_the_newest_readable_checkpoint_is_found(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for version, name, step in ((2, "last", 90), (10, "best", 20), (10, "last", 30), (10, "also", 10)):
        saved(tmp_path / f"version_{version}" / "checkpoints" / f"{name}.ckpt", step)
    folder = tmp_path / "version_10" / "checkpoints"
    assert newest_checkpoint(tmp_path) == folder / "last.ckpt"
    saved(folder / "best.ckpt", 30)
    assert newest_checkpoint(tmp_path) == folder / "last.ckpt"
    saved(folder / "best.ckpt", 40)
    assert newest_checkpoint(tmp_path) == folder / "best.ckpt"
    for name, next_best in (("best", "last"), ("last", "also")):
        (folder / f"{name}.ckpt").write_bytes((folder / f"{name}.ckpt").read_bytes()[:100])
        with pytest.warns(UserWarning, match=rf"version_10/checkpoints/{name}\.ckpt is damaged .*: passed over"):
            assert newest_checkpoint(tmp_path) == folder / f"{next_best}.ckpt"
        (folder / f"{name}.ckpt").unlink()
    (tmp_path / "version_11").mkdir()  # which was killed before its first; what an older run left is not its own
    assert newest_checkpoint(tmp_path) is None


def test_rows_of_lost_steps_and_torn_rows_are_dropped(tmp_path):
    folder = tmp_path / "run" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("a,b,step\n1,,1\n,2,3\n3,,3\n4,,5\n5,,")
    logger = RunLogger(tmp_path, "run", 0, steps=4)
    logger.log_metrics({"b": 9.0}, step=3)  # there already
    logger.log_metrics({"c": 6.0}, step=5)
    assert curves(folder) == [{"a": "1", "step": "1"}, {"a": "3", "step": "3"}, {"b": "2", "step": "3"},
                              {"c": "6.0", "step": "5"}]  # fmt: skip


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_data(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    train.main(ARGS)
    run = tmp_path / "runs" / "killed" / "version_0"
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(SystemExit, match=r"trained on other data \(val_size=16\): choose another --name"):
        train.main([*ARGS, "--data.val_size=20", "--trainer.max_epochs=4"])
    with pytest.raises(SystemExit, match=r"trained on other data \(FashionMNIST"):
        train.main([*ARGS, "--data=MNIST", "--trainer.max_epochs=4"])
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    train.main([*ARGS, "--trainer.max_epochs=4"])
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 3
    assert "max_epochs: 4" in (run / "config_from_step15.yaml").read_text()
    assert "max_epochs: 3" in (run / "config.yaml").read_text()
    train.main(["test", f"--config={run}/config.yaml", f"--ckpt_path={run}/checkpoints/best.ckpt"])  # fit's own


@pytest.mark.slow
def test_a_moved_run_goes_on_with_its_best_score(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    train.main(ARGS)
    (tmp_path / "runs").rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match="changes arguments of its model: lr 0.0, was 0.001"):
        train.main([*ARGS, f"--trainer.default_root_dir={tmp_path}/moved", "--trainer.max_epochs=4", "--model.lr=0.0"])
    run = tmp_path / "moved" / "killed" / "version_0" / "checkpoints"
    (saved,) = [v for k, v in state_of(run / "last.ckpt").items() if "val/loss" in k]
    scores = [float(row["val/loss"]) for row in curves(run.parent) if "val/loss" in row]
    assert len(scores) == 4 and float(saved["best_model_score"]) == pytest.approx(min(scores))
    assert saved["best_model_path"] == str(run / "best.ckpt")


def state_of(path):
    return torch.load(path, weights_only=True)["callbacks"]


def test_the_curves_are_whole_whenever_a_column_is_added(tmp_path, monkeypatch):
    logger = RunLogger(tmp_path, "run", 0)
    logger.log_metrics({"a": 1.0}, step=1)
    before = (tmp_path / "run" / "version_0" / "metrics.csv").read_text()

    def full(self, rows):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(csv.DictWriter, "writerows", full)
        with pytest.warns(UserWarning, match="could not be written"):
            logger.log_metrics({"b": 2.0}, step=2)
    assert (tmp_path / "run" / "version_0" / "metrics.csv").read_text() == before
    logger.log_metrics({"b": 3.0}, step=3)
    found = curves(tmp_path / "run" / "version_0")
    assert [row["step"] for row in found] == ["1", "2", "3"] and found[1]["b"] == "2.0"


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_disk_that_fills_leaves_whole_rows(name, tmp_path, monkeypatch):
    """Also half-way through a row, whether it is appended or adds a column."""
    logger, path = RunLogger(tmp_path, "run", 0), tmp_path / "run" / "version_0" / "metrics.csv"
    for step in range(4):
        logger.log_metrics({"a": float(step)}, step=step)

    def fills(self, rows):
        self.writer.writerow(["half"])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(csv.DictWriter, "writerows", fills)
        with pytest.warns(UserWarning, match="could not be written"):
            logger.log_metrics({name: 2.0}, step=4)
    assert [row["step"] for row in curves(path.parent)] == ["0", "1", "2", "3"]
    logger.log_metrics({name: 3.0}, step=5)
    assert [row["step"] for row in curves(path.parent)] == ["0", "1", "2", "3", "4", "5"]
    assert curves(path.parent)[-2][name] == "2.0"


def test_resuming_says_what_it_cannot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="--resume continues training: use it with fit, not test"):
        train.main(["test", *ARGS[1:]])
    with pytest.raises(SystemExit, match="--resume finds the checkpoint in the run's folder: leave out --ckpt_path"):
        train.main([*ARGS, "--checkpoint.dirpath=elsewhere"])
