"""What a run keeps: checkpoints under names of their own, in a folder of its own, and nothing is written over."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from stubs import Density, Quarters, Sampler, trainer

import train
from callbacks import FID, Report, WandbRecord
from datamodules import FashionMNIST
from lit_generative.checkpoints.best import BestModelCheckpoint, last_checkpoint, run_checkpoint
from lit_generative.checkpoints.last import AtomicCheckpointIO, newest_checkpoint
from lit_generative.checkpoints.load import load_model
from lit_generative.cli.commands import export
from lit_generative.errors import UserError
from lit_generative.models.vae import VAE
from lit_generative.training.run_logger import RunLogger
from lit_generative.utils.files import unused

pytestmark = pytest.mark.slow

TINY = ["--model=VAE", "--model.hidden=[8]", "--model.latent=2", "--model.test_k=[2]", "--data=FashionMNIST",
        "--data.batch_size=16", "--data.val_size=16", "--trainer.log_every_n_steps=2", "--trainer.accelerator=cpu",
        "--trainer.callbacks=[]", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", "--name=run"]  # fmt: skip
EVALUATION = [argument for argument in TINY if "name" not in argument]
RUN = Path("runs/run/version_0")


@pytest.fixture
def run(data_dir, tmp_path, monkeypatch):
    """Call a subcommand in an empty folder, on the made data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))

    def call(subcommand, *args, epochs=1):
        rest = [*TINY, f"--trainer.max_epochs={epochs}"] if subcommand == "fit" else EVALUATION
        train.main([subcommand, *rest, *args])

    return call


def files(folder="."):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def callback(name, **arguments):
    path = name if "." in name else f"lightning.pytorch.callbacks.{name}"
    return f"--trainer.callbacks={json.dumps([{'class_path': path, 'init_args': arguments}])}"


def read(path):
    return torch.load(path, weights_only=True)


# -- names -----------------------------------------------------------------------------------------


def test_several_checkpoints_have_several_names_and_the_report_names_the_best(run, capsys):
    run("fit", "--checkpoint.save_top_k=3", "--checkpoint.monitor=val/kl", "--checkpoint.mode=max",
        "--trainer.val_check_interval=0.5", "--model.lr=0.05", epochs=2)  # fmt: skip
    kept = [name for name in names(RUN / "checkpoints") if name != "last.ckpt"]
    assert len(kept) == 3 and all(
        f"epoch{(s := read(RUN / 'checkpoints' / name))['epoch']:04d}-step{s['global_step']:07d}.ckpt" == name
        for name in kept
    )
    (saved,) = [s for key, s in read(RUN / "checkpoints" / "last.ckpt")["callbacks"].items() if "val/kl" in key]
    scores = {Path(path).name: float(score) for path, score in saved["best_k_models"].items()}
    assert scores.keys() == set(kept) and len(set(scores.values())) == 3
    best = max(scores, key=scores.get)
    assert f"best checkpoint  {RUN}/checkpoints/{best}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("filename", "options", "expected"),
    [
        (None, {}, "best"),
        (None, {"save_top_k": 2}, "epoch0003-step0000020"),
        (None, {"save_top_k": -1, "auto_insert_metric_name": False}, "epoch0003-step0000020"),
        ("mine", {"save_top_k": 2}, "mine-epoch0003-step0000020"),
        ("{epoch}", {"save_top_k": 2}, "epoch3-step0000020"),
        ("{epoch}-{val/loss:.1f}", {}, "epoch3-val_loss0.5"),
        ("{step}-{epoch}", {"save_top_k": 2}, "step20-epoch3"),
    ],
)
def test_names_tell_checkpoints_apart(filename, options, expected, tmp_path):
    keeper = BestModelCheckpoint(tmp_path, filename, "val/loss", **options)
    metrics = {"epoch": torch.tensor(3), "step": torch.tensor(20), "val/loss": torch.tensor(0.5)}
    assert keeper.format_checkpoint_name(metrics) == str(tmp_path / f"{expected}.ckpt")
    assert keeper.format_checkpoint_name(metrics, "last") == str(tmp_path / "last.ckpt")


def test_the_best_of_no_number_are_not_kept(run):
    with pytest.raises(SystemExit, match=r"save_top_k 3 needs a metric to rank checkpoints by: .* or -1 \(all\)"):
        run("fit", "--checkpoint.save_top_k=3", "--data.val_size=0")
    assert not Path("runs").exists()


def test_a_checkpoint_of_an_exception_does_not_replace_the_best(run, monkeypatch):
    step = VAE.training_step

    def breaks(self, *args):
        if self.global_step == 3:
            raise UserError("broken")
        return step(self, *args)

    monkeypatch.setattr(VAE, "training_step", breaks)
    with pytest.raises(SystemExit, match="broken"):
        run("fit", "--checkpoint.save_on_exception=true", epochs=2)
    steps = {path.stem: read(path)["global_step"] for path in (RUN / "checkpoints").iterdir()}
    assert steps == {"best": 2, "exception": 3, "last": 2}


# -- folders ---------------------------------------------------------------------------------------


def test_without_loggers_runs_have_folders_of_their_own_and_go_on(run):
    quiet = "--trainer.logger=false"
    run("fit", quiet)
    first = files()
    assert {f"{RUN}/checkpoints/best.ckpt", f"{RUN}/checkpoints/last.ckpt", f"{RUN}/config.yaml"} <= first.keys()
    assert f"{RUN}/metrics.csv" not in first
    run("fit", quiet)
    assert first.items() <= files().items() and (RUN.with_name("version_1") / "checkpoints" / "best.ckpt").is_file()
    run("fit", quiet, "--resume", epochs=2)
    assert read(RUN.with_name("version_1") / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert first.items() <= files().items() and names("runs/run") == ["version_0", "version_1"]


@pytest.mark.parametrize(("subcommand", "result"), [("test", "results.json"), ("predict", "predictions.npz")])
def test_a_second_evaluation_leaves_the_first(subcommand, result, run, data_dir):
    """Also without loggers, when numbers are written all the same."""
    data = FashionMNIST(str(data_dir), batch_size=16, val_size=16)
    fit = trainer(".", logger=False, limit_train_batches=1, limit_val_batches=0, max_epochs=1)
    fit.fit(VAE(hidden=(8,), latent=2, test_k=(2,)), datamodule=data)
    fit.save_checkpoint("checkpoints/a.ckpt")
    before = {}
    for version in range(2):
        run(subcommand, "--ckpt_path=checkpoints/a.ckpt", "--trainer.logger=false")
        found = files(subcommand)
        assert len(found[f"version_{version}/{result}"]) > 100 and before.items() <= found.items()
        before = found
    if subcommand == "test":
        assert json.loads(before["version_1/results.json"])["metrics"]["elbo"] < 0


def test_runs_that_start_together_have_folders_of_their_own(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "version_3").touch()  # whatever it is
    with ThreadPoolExecutor(16) as pool:
        versions = list(pool.map(lambda _: RunLogger(tmp_path, "a/b").version, range(16)))
    assert sorted(versions) == list(range(4, 20))


def test_only_the_first_process_takes_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_generative.training.run_logger.rank_zero_only.rank", 1)
    assert RunLogger(tmp_path, "a").version == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../up", "/elsewhere", "a/../../b"])
def test_a_name_stays_in_the_folder_of_runs(name, run, tmp_path):
    with pytest.raises(SystemExit, match=r"leads out of runs: use --trainer\.default_root_dir"):
        run("fit", f"--name={name}")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_checkpoints_is_that_of_one_run(run):
    run("fit", "--checkpoint.dirpath=mine")
    before = files("mine")
    assert before.keys() == {"best.ckpt", "last.ckpt"}
    with pytest.raises(
        SystemExit, match=r"mine holds checkpoints already \(best\.ckpt\), .*write over: choose another"
    ):
        run("fit", "--checkpoint.dirpath=mine")
    assert files("mine") == before


@pytest.mark.filterwarnings("ignore:the resumed run changes arguments")
def test_settings_are_kept_whenever_a_run_goes_on(run):
    run("fit")
    before = files(RUN)
    for lr in (0.1, 0.2):  # the second begins where the first did
        run("fit", "--resume", f"--model.lr={lr}", "--trainer.max_time=00:00:00:00", epochs=2)
    found = {path.name: path.read_text() for path in RUN.glob("config*")}
    assert found.keys() == {"config.yaml", "config_from_step2.yaml", "config_from_step2_2.yaml"}
    assert "lr: 0.1\n" in found["config_from_step2.yaml"] and "lr: 0.2\n" in found["config_from_step2_2.yaml"]
    assert files(RUN)["hparams.yaml"] == before["hparams.yaml"]


def test_a_file_that_is_there_has_a_number_put_after_its_name(tmp_path):
    for expected in ("a.json", "a_2.json", "a_3.json"):
        path = unused(tmp_path / "a.json")
        assert path.name == expected
        path.touch()


def test_results_in_python_are_set_aside(data_dir, tmp_path):
    data = FashionMNIST(str(data_dir), batch_size=16, val_size=16)
    for _ in range(2):
        again = trainer(tmp_path, callbacks=[Report()], limit_test_batches=1, logger=False)
        again.test(Density(), datamodule=data, verbose=False)
    for kept in ("results.json", "results.md", "report.html"):
        assert {kept, kept.replace(".", "_2.")} <= set(names(tmp_path))


def test_an_export_takes_the_place_of_nothing(run, tmp_path):
    run("fit")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "decoder.pt2").touch()
    with pytest.raises(FileExistsError, match=r"decoder\.pt2 exists already"):
        export(f"{RUN}/checkpoints/best.ckpt", "out")
    assert files("out") == {"decoder.pt2": b""}


# -- which callback is the command line's ----------------------------------------------------------


def test_a_users_own_checkpoints_stay_where_they_are(run, capsys):
    """Of the same arguments even; with several epochs, of which its best is the first."""
    own = callback("ModelCheckpoint", dirpath="mine", monitor="val/loss", mode="min", filename="best")
    run("fit", own, "--model.lr=0", epochs=2)
    assert names("mine") == ["best.ckpt"] and names(RUN / "checkpoints") == ["best.ckpt", "last.ckpt"]
    out = capsys.readouterr().out
    assert f"best checkpoint  {RUN}/checkpoints/best.ckpt\nlast checkpoint  {RUN}/checkpoints/last.ckpt\n" in out
    mine = files("mine")
    run("fit", own, "--model.lr=0", "--resume", epochs=3)
    assert read(RUN / "checkpoints" / "last.ckpt")["global_step"] == 6
    assert files("mine") == mine  # still none better, as the one that goes on knows
    state = read(RUN / "checkpoints" / "last.ckpt")["callbacks"]
    paths = {key.partition("{")[0]: s["best_model_path"] for key, s in state.items() if "val/loss" in key}
    assert paths == {
        "BestModelCheckpoint": str(RUN / "checkpoints" / "best.ckpt"),
        "ModelCheckpoint": str(Path("mine/best.ckpt").resolve()),
    }


def test_a_run_of_before_keeps_its_best_score(run):
    """The command line's own callback had Lightning's name then."""
    run("fit")
    last = RUN / "checkpoints" / "last.ckpt"
    checkpoint = read(last)
    states = {key.removeprefix("Best"): state for key, state in checkpoint["callbacks"].items()}
    (key,) = [key for key in states if key.startswith("ModelCheckpoint")]
    states[key]["best_model_score"] = states[key]["kth_value"] = torch.tensor(-1e9)  # which no other will reach
    states[key]["best_k_models"] = {str(RUN / "checkpoints" / "best.ckpt"): torch.tensor(-1e9)}
    torch.save(checkpoint | {"callbacks": states}, last)
    best = (RUN / "checkpoints" / "best.ckpt").read_bytes()
    run("fit", "--resume", epochs=2)
    assert (RUN / "checkpoints" / "best.ckpt").read_bytes() == best and read(last)["global_step"] == 4


@pytest.mark.filterwarnings('ignore:.*fit.ckpt_path=(None|"last")')
def test_a_checkpoint_for_exceptions_is_not_the_runs(run, capsys):
    run("fit", callback("OnExceptionCheckpoint", dirpath="broken"))
    assert f"best checkpoint  {RUN}/checkpoints/best.ckpt\n" in capsys.readouterr().out
    assert names(RUN / "checkpoints") == ["best.ckpt", "last.ckpt"]


@pytest.mark.filterwarnings('ignore:.*fit.ckpt_path=(None|"last")')
def test_without_checkpoints_of_its_own_a_run_is_reported(data_dir, tmp_path, capsys):
    fit = trainer(tmp_path, callbacks=[OnExceptionCheckpoint(tmp_path), Report(), WandbRecord()], max_epochs=1,
                  enable_checkpointing=True)  # fmt: skip
    fit.fit(VAE(hidden=(8,), latent=2), datamodule=FashionMNIST(str(data_dir), batch_size=16, val_size=16))
    assert run_checkpoint(fit) is None and last_checkpoint(fit) is None
    assert "trained          5 steps" in capsys.readouterr().out


def test_the_command_lines_callback_is_found_among_others(tmp_path):
    first, own = ModelCheckpoint(tmp_path / "a"), BestModelCheckpoint(tmp_path / "b")
    for callbacks, expected in (([first, own], own), ([OnExceptionCheckpoint(tmp_path), first], first)):
        assert run_checkpoint(trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)) is expected


# -- checkpoints of weights only -------------------------------------------------------------------


def test_training_does_not_go_on_from_weights_alone(run, data_dir, tmp_path):
    run("fit", "--checkpoint.save_weights_only=true")
    best, last = RUN / "checkpoints" / "best.ckpt", RUN / "checkpoints" / "last.ckpt"
    message = "holds weights only, and training cannot go on from it: .* use --init_from"
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as exit:
        run("fit", f"--ckpt_path={best}", "--name=other")
    assert "\n" not in exit.value.code and not Path("runs/other").exists()
    with pytest.raises(ValueError, match=message):
        data = FashionMNIST(str(data_dir), batch_size=16, val_size=16)
        trainer(tmp_path, max_epochs=2).fit(load_model(best), datamodule=data, ckpt_path=best, weights_only=True)
    assert newest_checkpoint(RUN.parent) == last
    last.unlink()
    assert newest_checkpoint(RUN.parent) is None
    run("fit", f"--init_from={best}", "--name=other")
    run("test", f"--ckpt_path={best}", "--trainer.limit_test_batches=1")


def test_a_users_own_folder_is_not_taken_for_one_that_moved(tmp_path):
    states = {
        "BestModelCheckpoint{}": {"dirpath": "/old", "best_model_path": "/old/best.ckpt", "best_k_models": {}},
        "ModelCheckpoint{1}": {
            "dirpath": "/old",
            "best_model_path": "/old/a.ckpt",
            "best_k_models": {"/old/a.ckpt": 1},
        },
        "ModelCheckpoint{2}": {
            "dirpath": "/own",
            "best_model_path": "/own/a.ckpt",
            "best_k_models": {"/own/a.ckpt": 1},
        },
    }
    torch.save({"callbacks": states}, tmp_path / "last.ckpt")
    own, beside, elsewhere = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")["callbacks"].values()
    assert own["best_model_path"] == f"{tmp_path}/best.ckpt" and own["dirpath"] == str(tmp_path)
    assert beside["best_k_models"] == {f"{tmp_path}/a.ckpt": 1}
    assert elsewhere == states["ModelCheckpoint{2}"]


# -- numbers that nothing logs ---------------------------------------------------------------------


FOLLOWED = {
    "EarlyStopping": lambda name: [callback("EarlyStopping", monitor=name)],
    "ModelCheckpoint": lambda name: [f"--checkpoint.monitor={name}"],
    "a user's ModelCheckpoint": lambda name: [callback("ModelCheckpoint", dirpath="mine", monitor=name)],
}


@pytest.mark.parametrize("follow", FOLLOWED.values(), ids=FOLLOWED)
@pytest.mark.parametrize("name", ["val/los", "val_loss", "train/los"])
def test_a_number_that_nothing_logs_is_named_before_training(name, follow, run):
    with pytest.raises(SystemExit, match=rf"^error: \w+ monitors {name}, but nothing in this run logs it") as exit:
        run("fit", *follow(name))
    assert "\n" not in exit.value.code and not list(Path().rglob("*.ckpt"))


def test_also_in_a_run_that_goes_on_or_has_no_validation(run):
    run("fit")
    before = files(RUN / "checkpoints")
    with pytest.raises(SystemExit, match=r"EarlyStopping monitors val/los, .*logged in validation: val/bpd, "):
        run("fit", *FOLLOWED["EarlyStopping"]("val/los"), "--resume", epochs=2)
    assert files(RUN / "checkpoints") == before
    run("fit", *FOLLOWED["EarlyStopping"]("val/loss"), "--resume", epochs=2)
    with pytest.raises(
        SystemExit, match=r"EarlyStopping monitors val/loss, .*validation, which this run does not have"
    ):
        run("fit", *FOLLOWED["EarlyStopping"]("val/loss"), "--trainer.limit_val_batches=0")


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*EarlyStopping")
@pytest.mark.parametrize("kind", ["EarlyStopping", "ModelCheckpoint"])
def test_where_it_is_only_found_after_an_epoch_that_epoch_is_kept(kind, run):
    with pytest.raises(SystemExit, match=r"^error: .*val/los") as exit:
        run("fit", *FOLLOWED[kind]("val/los"), "--trainer.num_sanity_val_steps=0", epochs=2)
    assert "\n" not in exit.value.code
    assert read(RUN / "checkpoints" / "last.ckpt")["global_step"] == 2
    run("fit", "--resume", epochs=2)
    assert read(RUN / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_without_validation_the_last_is_kept_and_this_is_said(run):
    with pytest.warns(UserWarning, match="val/kl needs validation, and this run has none: keeping the last checkpoint"):
        run("fit", "--checkpoint.monitor=val/kl", "--trainer.limit_val_batches=0")
    assert names(RUN / "checkpoints") == ["best.ckpt", "last.ckpt"]


def test_early_stopping_needs_its_number_in_every_validation(data_dir, tmp_path):
    fid = FID(Quarters(), num_samples=8, batch_size=8, cache_dir=str(tmp_path), every_n_epochs=2)
    fit = trainer(tmp_path, callbacks=[fid, EarlyStopping("val/fid_quarters")], logger=False)
    with pytest.raises(ValueError, match=r"EarlyStopping expects val/fid_quarters in every validation, .*2 epochs"):
        fit.fit(Sampler(), datamodule=FashionMNIST(str(data_dir), batch_size=16, val_size=16))
