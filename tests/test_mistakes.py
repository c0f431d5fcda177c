"""A mistake of the user's is one line; a bug of ours shows its traceback and asks for a report."""

import csv
import functools
import typing

import numpy as np
import pytest
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from small_models import SMALL

import callbacks
import datamodules
import train
from lit_generative.errors import UserError
from lit_generative.models.vae import VAE

pytestmark = pytest.mark.slow

TINY = ["--data=FashionMNIST", "--data.batch_size=16", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1"]  # fmt: skip
PLAIN = [*TINY, "--trainer.callbacks=[]"]
ACCUMULATION = "[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: %s}}}]"


@pytest.fixture
def fit(data_dir, tmp_path, monkeypatch):
    """Train a small model in an empty folder, on the made data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))

    def call(model, *args, start=PLAIN):
        small = [f"--model.{key}={value}" for key, value in SMALL[model].items() if key != "lr_decay_start"]
        train.main(["fit", f"--model={model}", *small, *start, *args])

    return call


def rows(folder):
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_such_errors_are_what_python_calls_them():
    for error in (datamodules.DataError, train.NonFiniteError):
        assert issubclass(error, UserError)
    with pytest.raises(ValueError, match="must be >= 1") as raised:
        VAE(latent=0)
    assert isinstance(raised.value, UserError)


BUGS = {
    "in a step": (VAE, "training_step", ValueError),
    "in a constructor": (VAE, "__init__", TypeError),
    "in one of a list": (callbacks.SampleGrid, "__init__", AttributeError),
    "in the data": (datamodules.FashionMNIST, "setup", KeyError),
    "in a callback": (callbacks.SampleGrid, "setup", ValueError),
    "in train.py": (train, "as_list", TypeError),
}


@pytest.mark.parametrize("place, name, kind", BUGS.values(), ids=BUGS)
def test_a_bug_shows_its_traceback_and_asks_for_a_report(place, name, kind, fit, monkeypatch):
    @functools.wraps(getattr(place, name))  # jsonargparse remembers the arguments of a constructor
    def fail(*args, **kwargs):
        raise kind("nothing that a user did")

    monkeypatch.setattr(place, name, fail)
    with pytest.raises(kind, match="nothing that a user did") as bug:
        fit("VAE", "--name=my run", "--trainer.callbacks=[{class_path: callbacks.SampleGrid}]")
    (note,) = bug.value.__notes__
    assert "please report it with lit-generative" in note and "train.py fit --model=VAE" in note
    assert "'--name=my run'" in note  # as a shell takes it


LINES = {
    "a constructor's, in a list": ("VAE", ["--trainer.callbacks=[{class_path: SampleGrid, init_args: {n: 0}}]"],
                                   "SampleGrid: n must be >= 1, got 0"),
    "the same of Lightning's": ("VAE", [f"--trainer.callbacks={ACCUMULATION % 0}"],
                                "Accumulation factor should be an int greater than 0"),
    "a logger's, in a list": ("VAE", ["--trainer.logger=[{class_path: MLFlowLogger}]"], "mlflow"),
    "a Trainer's": ("VAE", ["--trainer.strategy=foo"], "invalid strategy name"),
    "that Lightning finds in the run": ("DCGAN", [f"--trainer.callbacks={ACCUMULATION % 2}"],
                                        "not supported for manual optimization"),
    "that torch's optimiser finds": ("VAE", ["--model.lr=-1"], "Invalid learning rate: -1.0"),
    "accumulation": ("VAE", ["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches.*PositiveInt"),
    "validation": ("VAE", ["--trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch.*PositiveInt"),
    "validation within": ("VAE", ["--trainer.val_check_interval=0"], "`val_check_interval`: '0'"),
    "clipping": ("VAE", ["--trainer.gradient_clip_val=-1"], "gradient_clip_val.*NonNegativeFloat"),
    "lines": ("VAE", ["--trainer.log_every_n_steps=-1"], "log_every_n_steps.*NonNegativeInt"),
    "a probability": ("DDPM", ["--model.dropout=2"], "dropout must be in \\[0, 1\\], got 2.0"),
    "null": ("BetaVAE", ["--model.latent=null"], "BetaVAE: latent must have a value, got null"),
    "null for the data": ("VAE", ["--data.batch_size=null"], "FashionMNIST: batch_size must have a value, got null"),
    "no text": ("VAE", ["--config=damaged.yaml"], "damaged.yaml is not UTF-8 text, from byte 7 on"),
    "no list": ("VAE", ["--model.hidden=64"], r'"hidden": Expected a list, as in \[64\]'),
    "no brackets": ("VAE", ["--model.hidden=64,32"], r'"hidden": Expected a list, as in \[64,32\]'),
    "no data set": ("VAE", ["--data=ImageData"], "choose from CIFAR10, Cityscapes, FashionMNIST, ImageFolder, KMNIST, "
                                                 "MNIST, PairedFolder, Pictures, Sprites, UnpairedFolders "),
    "no data set, by its path": ("VAE", ["--data=datamodules.pairs.PairedImages"], "an instantiatable class.*abstract"),
    "what barebones is without": ("VAE", ["--trainer.barebones=true", "--trainer.enable_checkpointing=true"],
                                  "barebones=True, enable_checkpointing=True"),
}  # fmt: skip


@pytest.mark.parametrize("model, args, message", LINES.values(), ids=LINES)
def test_mistakes_end_in_one_line(model, args, message, fit, tmp_path):
    (tmp_path / "damaged.yaml").write_bytes(b"model: \xaf")
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as ended:
        fit(model, *args)
    assert "\n" not in ended.value.code
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_run_without_lines_of_the_curves_trains(fit, tmp_path):
    fit("VAE", "--trainer.log_every_n_steps=0", "--name=a")
    (row,) = rows(tmp_path / "runs" / "a" / "version_0")
    assert float(row["val/loss"]) > 0 and not any(name.startswith("train/") for name in row)


@pytest.mark.parametrize("model", ["VAE", "DCGAN"])
@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_barebones_trains_and_writes_nothing(model, fit, tmp_path, capsys):
    fit(model, "--trainer.barebones=true", start=[arg for arg in TINY if "progress" not in arg])
    assert "2 steps" in capsys.readouterr().out and not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("given, steps", [("1", 1), ("1.0", 6)])
def test_one_batch_is_one_and_not_all(given, steps, fit, capsys, monkeypatch):
    """Whichever of int and float stands first in Lightning's annotation: typing takes the two orders for one type."""
    turned = dict.fromkeys(["limit_train_batches", "limit_val_batches"], typing.Union[float, int, None])  # noqa: UP007
    init = Trainer.__init__.__wrapped__  # which Lightning's decorator hides
    monkeypatch.setattr(init, "__annotations__", init.__annotations__ | turned)
    data = [arg for arg in PLAIN if "limit_train" not in arg]
    fit("VAE", "--data.val_size=0", "--data.batch_size=16", f"--trainer.limit_train_batches={given}", start=data)
    assert f"trained          {steps} step" in capsys.readouterr().out


def test_loggers_write_where_the_run_does(fit, tmp_path):
    more = "[{class_path: CSVLogger, init_args: {save_dir: %s, name: more}}]"
    fit("VAE", "--trainer.default_root_dir=here", f"--trainer.logger={more % 'runs'}", "--name=a")
    assert rows(tmp_path / "here" / "more" / "version_0") and not (tmp_path / "runs").exists()
    config = tmp_path / "here" / "a" / "version_0" / "config.yaml"
    assert yaml.safe_load(config.read_text())["trainer"]["logger"][0]["init_args"]["save_dir"] == "runs"
    train.main(["fit", f"--config={config}", "--trainer.default_root_dir=there"])  # as it was, elsewhere
    assert rows(tmp_path / "there" / "more" / "version_0")
    fit("VAE", "--trainer.default_root_dir=here", f"--trainer.logger={more % 'chosen'}")
    assert rows(tmp_path / "chosen" / "more" / "version_0")


def test_suffixes_and_options_of_samples(fit, tmp_path):
    fit("DDPM", "--name=a")
    ckpt = tmp_path / "runs" / "a" / "version_0" / "checkpoints" / "best.ckpt"
    sample = ["sample", f"--ckpt_path={ckpt}", "--n=2", "--options.steps=2"]
    train.main([*sample, "--output=x.PNG"])
    with Image.open(tmp_path / "x.PNG") as image:
        assert image.format == "PNG"
    train.main([*sample, "--output=x.NPZ"])
    with np.load(tmp_path / "x.NPZ") as file:
        assert file["images"].shape == (2, 28, 28, 1)
    for name, given, wanted in (("steps", "2.5", "an int"), ("steps", "many", "an int"), ("eta", "x", "a number")):
        with pytest.raises(SystemExit, match=f"error: --options.{name} must be {wanted}, got {given}"):
            train.main([*sample, "--output=y.png", f"--options.{name}={given}"])
    assert not (tmp_path / "y.png").exists()
