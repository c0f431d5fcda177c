"""What goes wrong in runs, and files that mean harm: one clear line, or recovery. docs/reliability.md lists them."""

import io
import os
import pickle
import random
import shutil
import signal
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from stubs import trainer
from test_runs import ARGS, attempt

import train
from callbacks import SampleGrid, SaveOnSignal, SkipNonFinite, _logging
from callbacks.training import save_on_signal
from datamodules import CIFAR10, DataError, FashionMNIST, ImageFolder
from datamodules.files import unpack
from lit_generative.checkpoints import init_from
from lit_generative.checkpoints.load import CheckpointError, load_model
from lit_generative.metrics.reference_statistics import read_reference
from lit_generative.models.dcgan import DCGAN
from lit_generative.models.vae import VAE
from lit_generative.sampling import draw
from lit_generative.training.log import NonFiniteError

pytestmark = pytest.mark.slow


@pytest.fixture
def data(data_dir):
    return FashionMNIST(str(data_dir), batch_size=16, val_size=16)


class Spoilt(VAE):
    """A VAE whose loss is NaN in some of its steps."""

    spoilt = ()

    def objective(self, x, c=None):
        terms = super().objective(x, c)
        if self.training and self.trainer.global_step in self.spoilt:
            terms["kl"] = terms["kl"] * float("nan")
            terms["loss"] = terms["loss"] + terms["kl"]
        return terms


def spoilt(*steps):
    model = Spoilt(hidden=(8,), latent=2)
    model.spoilt = steps
    return model


# -- losses ----------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run_before_it_spoils_anything(data, tmp_path):
    model = spoilt(3)
    with pytest.raises(NonFiniteError, match=r"step 3: loss is nan, kl is nan\. The last checkpoint: none yet\. Lower"):
        trainer(tmp_path, max_epochs=1, logger=False).fit(model, datamodule=data)
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_last_checkpoint_is_named(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    objective = VAE.objective

    def spoil(self, x, c=None):
        nan = float("nan") if self.training and self.trainer.global_step == 7 else 0.0
        return {name: value + nan for name, value in objective(self, x, c).items()}

    monkeypatch.setattr(VAE, "objective", spoil)
    with pytest.raises(SystemExit, match=r"step 7: loss is nan.* The last checkpoint: runs/killed/.*/last\.ckpt\."):
        train.main(ARGS)


def test_such_steps_can_be_left_out(data, tmp_path):
    model, skip = spoilt(1, 2), SkipNonFinite(at_most=2)
    fit = trainer(tmp_path, callbacks=[skip], max_epochs=1, logger=False, log_every_n_steps=5)
    with pytest.warns(UserWarning, match="is skipped: its gradients are NaN or infinite"):
        fit.fit(model, datamodule=data)
    assert model.skipped_steps == 2 and fit.logged_metrics["train/skipped_steps"] == 2
    assert all(p.isfinite().all() for p in model.parameters()) and model.stops_at_non_finite
    with pytest.warns(UserWarning), pytest.raises(NonFiniteError, match="NaN or infinite in 3 steps in a row, up to 3"):
        fit = trainer(tmp_path, callbacks=[SkipNonFinite(at_most=2)], max_epochs=1, logger=False)
        fit.fit(spoilt(1, 2, 3), datamodule=data)


@pytest.mark.parametrize("accumulate_grad_batches", [1, 2])
def test_statistics_of_a_step_that_is_left_out_are_put_back(accumulate_grad_batches, data, tmp_path):
    class SpoiltGame(DCGAN):
        def generate(self, batch):
            return super().generate(batch) * (float("nan") if self.trainer.global_step == 0 else 1.0)

    model = SpoiltGame(width=4, latent=4, accumulate_grad_batches=accumulate_grad_batches)
    fit = trainer(tmp_path, callbacks=[SkipNonFinite()], max_epochs=1, logger=False)
    with pytest.warns(UserWarning, match="is skipped: its gradients are NaN or infinite"):
        fit.fit(model, datamodule=data)
    # the two networks' of the first batch; or the discriminator's, whose step the second completes
    assert model.skipped_steps == 3 - accumulate_grad_batches and fit.global_step == 5
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_weights_that_are_no_numbers_are_not_saved(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))

    def spoil(self, optimizer):  # the loss was a number
        if self.trainer.global_step == 7:
            self.decoder.net[0].weight.grad[0, 0] = float("nan")

    monkeypatch.setattr(VAE, "on_before_optimizer_step", spoil)
    with pytest.raises(SystemExit, match=r"step 8: decoder\.net\.0\.weight is nan, and was not saved\. The last"):
        train.main(ARGS)
    last = torch.load(tmp_path / "runs" / "killed" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 7 and all(value.isfinite().all() for value in last["state_dict"].values())


# -- memory and disks ------------------------------------------------------------------------------


def test_samples_that_do_not_fit_are_drawn_in_halves():
    sizes = []

    class Large:
        def sample(self, n, c=None, scale=1.0):
            if n > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            sizes.append(n)
            return scale * (torch.zeros(n) if c is None else c)

    with pytest.warns(UserWarning, match="no memory for 6 samples at a time: going on with 3"):
        x = draw(Large(), 6, torch.arange(6.0), scale=2.0)
    assert x.tolist() == [2.0 * i for i in range(6)] and sizes == [3, 3]
    errors = iter([RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), None])

    class OnCPU:
        def sample(self, n, c=None):
            if (error := next(errors, None)) is not None:
                raise error
            return torch.zeros(n)

    with pytest.warns(UserWarning, match="no memory for 4 samples"):
        assert len(draw(OnCPU(), 4)) == 4
    with pytest.raises(torch.OutOfMemoryError):
        draw(type("None", (), {"sample": lambda self, n, c: Large.sample(self, 9)})(), 1)


def test_a_full_disk_costs_a_picture_and_not_the_run(data, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_logging, "save_png", full)
    model = VAE(hidden=(8,), latent=2)
    with pytest.warns(UserWarning, match="the image samples could not be written: .*No space left"):
        trainer(tmp_path, callbacks=[SampleGrid(n=4)], max_epochs=1).fit(model, datamodule=data)


def test_a_folder_that_vanishes_is_made_again(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    step = VAE.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 6:
            shutil.rmtree(tmp_path / "runs")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(VAE, "training_step", training_step)
    train.main(ARGS)
    run = tmp_path / "runs" / "killed" / "version_0"
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 15
    assert (run / "metrics.csv").read_text().count("\n") > 3


def test_a_run_that_can_write_nowhere_does_not_start(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    (tmp_path / "runs").write_text("a file")
    monkeypatch.setattr(VAE, "training_step", lambda *_: pytest.fail("it started"))
    with pytest.raises(SystemExit, match=r"error: .*(Not a directory|File exists).*runs"):
        train.main(ARGS)
    assert (tmp_path / "runs").read_text() == "a file"


# -- signals and clocks ----------------------------------------------------------------------------


def test_signals_leave_a_checkpoint(data_dir, tmp_path):
    done = attempt(tmp_path / "a", data_dir, "SIGTERM", 3, "--save_every=100")
    last = Path("runs", "killed", "version_0", "checkpoints", "last.ckpt")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM: saved" in done.stderr and "Traceback" not in done.stderr
    assert torch.load(tmp_path / "a" / last, weights_only=True)["global_step"] == 3
    done = attempt(tmp_path / "a", data_dir, "SIGINT", 4, "--save_every=100")
    assert done.returncode == 128 + signal.SIGINT and "again: at once" in done.stderr, done.stderr
    assert "SIGINT: saved" in done.stderr and "Traceback" not in done.stderr
    assert torch.load(tmp_path / "a" / last, weights_only=True)["global_step"] == 7
    done = attempt(tmp_path / "a", data_dir, "SIGUSR1", 1, "--save_every=100")
    assert done.returncode == 0 and "SIGUSR1: saved" in done.stderr and "step 8" in done.stderr, done.stderr
    assert torch.load(tmp_path / "a" / last, weights_only=True)["global_step"] == 15


def test_a_signal_ends_a_run_whose_every_batch_is_validated(data, tmp_path):
    class Signal(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    fit = trainer(tmp_path, callbacks=[SaveOnSignal(), Signal()], max_epochs=5, limit_train_batches=1, logger=False)
    with pytest.raises(SIGTERMException):
        fit.fit(VAE(hidden=(8,), latent=2), datamodule=data)
    assert fit.global_step == 2 and signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_comes_while_processes_agree_is_not_lost(monkeypatch):
    monkeypatch.setattr(save_on_signal, "step_begun", lambda trainer: False)
    monkeypatch.setattr(save_on_signal, "validates_next", lambda trainer: True)
    callback = SaveOnSignal()

    def reduce(flags, reduce_op):
        callback._ask(signal.SIGTERM, None)
        return flags

    fit = SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce=reduce))
    model = SimpleNamespace(device="cpu")
    callback.on_train_batch_end(fit, model, None, None, 0)
    callback.on_train_batch_start(fit, model, None, 1)  # which was not agreed upon yet
    callback.on_train_batch_end(fit, model, None, None, 1)
    with pytest.raises(SIGTERMException):
        callback.on_train_batch_start(fit, model, None, 2)


@pytest.mark.parametrize("more", [{"check_val_every_n_epoch": 2}, {"limit_val_batches": 0}], ids=str)
def test_a_signal_saves_where_no_validation_comes(more, data, tmp_path):
    class Signal(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    best = ModelCheckpoint(tmp_path)
    fit = trainer(tmp_path, callbacks=[SaveOnSignal(), Signal(), best], enable_checkpointing=True, logger=False,
                  max_epochs=2, val_check_interval=3, **more)  # fmt: skip
    with pytest.raises(SIGTERMException):
        fit.fit(VAE(hidden=(8,), latent=2), datamodule=data)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_clock_that_jumps_back_changes_nothing(data, tmp_path, monkeypatch):
    hours = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hours))
    model = VAE(hidden=(8,), latent=2)
    trainer(tmp_path, max_epochs=1, limit_val_batches=1).fit(model, datamodule=data)
    assert 0 < model.training_seconds < 600


# -- damaged files ---------------------------------------------------------------------------------


def mutations(content, n=200):
    """The same file with a flipped bit, cut off, with a lost, a doubled or an overwritten piece."""
    chance = random.Random(0)
    for i in range(n):
        changed, at = bytearray(content), chance.randrange(len(content))
        size = chance.randrange(1, 1 + min(40, len(content) - at))
        if i % 5 == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif i % 5 == 1:
            del changed[at:]
        elif i % 5 == 2:
            del changed[at : at + size]
        elif i % 5 == 3:
            changed[at:at] = changed[at : at + size]
        else:
            changed[at : at + size] = chance.randbytes(size)
        yield bytes(changed)


def test_damaged_data_files_are_named_or_read(data_dir, tmp_path):
    shutil.copytree(data_dir / "FashionMNIST", tmp_path / "FashionMNIST")
    (path, *_) = sorted((tmp_path / "FashionMNIST" / "raw").glob("train-images*"))
    refused = 0
    for content in mutations(path.read_bytes()):
        path.write_bytes(content)
        try:
            FashionMNIST(str(tmp_path), val_size=16, download=False).setup("fit")
        except DataError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > 100  # what remains are other levels of pixels


def test_damaged_pictures_are_named_or_read(tmp_path):
    from PIL import Image

    folder, levels = tmp_path / "pictures", np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    folder.mkdir()
    for name in ("a", "b", "c", "broken"):
        Image.fromarray(levels).save(folder / f"{name}.png")
    refused = 0
    for content in mutations((folder / "broken.png").read_bytes()):
        (folder / "broken.png").write_bytes(content)
        try:
            ImageFolder(str(folder), 16, test_size=1, val_size=1, cache_dir=str(tmp_path / "cache")).prepare_data()
        except DataError as error:
            assert "broken.png" in str(error)
            refused += 1
    assert refused > 50


def test_damaged_checkpoints_are_named_and_never_half_believed(tmp_path):
    model = VAE(hidden=(8,), latent=2)
    path = tmp_path / "a.ckpt"
    checkpoint = {"class_path": f"{VAE.__module__}.VAE", "state_dict": model.state_dict(), "global_step": 0}
    torch.save(checkpoint | {"hyper_parameters": dict(model.hparams)}, path)
    content, refused = path.read_bytes(), 0
    for changed in mutations(content):
        path.write_bytes(changed)
        try:
            again = load_model(path)
        except CheckpointError as error:
            assert "a.ckpt" in str(error) or "the checkpoint asks for" in str(error)
            refused += 1
        else:  # what changed is padding, or between the parts
            assert all(torch.equal(v, model.state_dict()[name]) for name, v in again.state_dict().items())
    assert refused > 150


def test_a_checkpoint_of_another_version_says_so(tmp_path):
    path, model = tmp_path / "a.ckpt", VAE(hidden=(8,), latent=2)
    arguments = {"hyper_parameters": dict(model.hparams) | {"hidden": "wide"}}
    torch.save({"class_path": f"{VAE.__module__}.VAE", "state_dict": model.state_dict()} | arguments, path)
    with pytest.raises(CheckpointError, match=r"a\.ckpt says of its VAE what this version does not understand"):
        load_model(path)
    arguments = {"hyper_parameters": dict(model.hparams) | {"flash": True}}
    torch.save({"class_path": f"{VAE.__module__}.VAE", "state_dict": model.state_dict()} | arguments, path)
    with pytest.raises(CheckpointError, match=r"says of its VAE what this version does not understand \(flash\)"):
        load_model(path)
    torch.save({"class_path": "lit_generative.models.vae.NewVAE", "state_dict": {}}, path)
    with pytest.raises(CheckpointError, match=r"asks for the class lit_generative\.models\.vae\.NewVAE"):
        load_model(path)


def test_damaged_recipes_end_in_a_line_or_run(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    monkeypatch.setattr(train.CLI, "_run_subcommand", lambda self, subcommand: None)
    build, parsers = train.CLI.setup_parser, {}

    def setup_parser(self, *args):  # once: it does not depend on the recipe
        if not parsers:
            build(self, *args)
            parsers.update(
                {name: value for name, value in vars(self).items() if "parser" in name or "subcommand" in name}
            )
        vars(self).update(parsers)
        self._parser("fit").add_instantiator(self._build, object, prepend=True)  # this object's

    monkeypatch.setattr(train.CLI, "setup_parser", setup_parser)
    recipe = (Path(train.__file__).parent / "configs" / "vae_mnist.yaml").read_bytes()
    ended = 0
    for i, content in enumerate(mutations(recipe)):
        path = tmp_path / f"{i}.yaml"
        path.write_bytes(content)
        try:
            train.main(["fit", f"--config={path}", "--trainer.accelerator=cpu"])
        except SystemExit as error:
            assert error.code is not None and str(error.code).startswith("error: ") and str(error.code).count("\n") == 0
            ended += 1
    assert ended > 60 and "Traceback" not in capsys.readouterr().err


# -- files that mean harm --------------------------------------------------------------------------


class Harm:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_nothing_is_executed(tmp_path, monkeypatch):
    marker = tmp_path / "executed"
    harm = pickle.dumps(Harm(marker), protocol=2)
    plain = tmp_path / "plain.ckpt"
    plain.write_bytes(harm)
    torch.save({"state_dict": {}, "class_path": "a", "callbacks": Harm(marker)}, tmp_path / "torch.ckpt")
    for path in (plain, tmp_path / "torch.ckpt"):
        with pytest.raises(CheckpointError, match=path.name):
            load_model(path)
        with pytest.raises(CheckpointError, match=path.name):
            init_from(VAE(hidden=(8,), latent=2), str(path))
    statistics = tmp_path / "statistics.npz"
    np.savez(statistics, mu=np.array([Harm(marker)], dtype=object), sigma=np.zeros(1), allow_pickle=True)
    with pytest.raises(ValueError, match=r"statistics\.npz"):
        read_reference(statistics, "any", "none", (28, 28))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for names in CIFAR10.files.values():
        for name in names:
            (folder / name).write_bytes(harm)
    with pytest.raises(DataError, match="data_batch_1 must have MD5"):
        CIFAR10(str(tmp_path)).setup("fit")
    assert not marker.exists()


def test_a_cache_of_images_executes_nothing(tmp_path):
    from PIL import Image

    marker, folder, cache = tmp_path / "executed", tmp_path / "pictures", tmp_path / "cache"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16)).save(folder / f"{i}.png")
    data = lambda: ImageFolder(str(folder), 16, test_size=1, val_size=1, cache_dir=str(cache))  # noqa: E731
    data().prepare_data()
    (cached,) = cache.glob("*.npy")
    size = cached.stat().st_size
    with cached.open("wb") as file:
        np.save(file, np.array([Harm(marker)], dtype=object), allow_pickle=True)
        file.write(bytes(size - file.tell()))
    with pytest.raises(DataError, match=r"\.npy is damaged .*: delete it, and it will be made again"):
        data().prepare_data()
    assert not marker.exists()


def test_links_out_of_a_folder_of_images_are_named(tmp_path):
    from PIL import Image

    for name in ("elsewhere/a", "elsewhere/more/b", "pictures/x/c", "pictures/x/d", "pictures/x/e"):
        (path := tmp_path / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(path)
    folder = tmp_path / "pictures"
    (folder / "x" / "inside.png").symlink_to(folder / "x" / "c.png")
    load = lambda: ImageFolder(str(folder), 16, test_size=1, val_size=1, cache_dir=str(tmp_path / "cache"))  # noqa: E731
    load().prepare_data()  # warnings are errors
    (folder / "x" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    with pytest.warns(
        UserWarning, match=r"1 images in .*pictures/x are links to files outside it.*link\.png -> .*/a\.png"
    ):
        load().prepare_data()
    (folder / "y").symlink_to(tmp_path / "elsewhere" / "more")
    with pytest.warns(UserWarning, match="2 images in .*pictures are links to files outside it"):
        load().prepare_data()


@pytest.mark.parametrize("kind", ["up", "absolute", "link"])
def test_archives_stay_in_their_folder(kind, tmp_path):
    (inside := tmp_path / "inside").mkdir()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo({"up": "../evil", "absolute": str(tmp_path / "evil"), "link": "link"}[kind])
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "../.."
        member.size = 0 if kind == "link" else 4
        tar.addfile(member, None if kind == "link" else io.BytesIO(b"evil"))
    with pytest.raises(DataError, match=r"a\.tar was not unpacked: .* is unsafe"):
        unpack(tmp_path / "a.tar", inside)
    assert not any(inside.iterdir())
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "change",
    [{"hyper_parameters": None}, {"hyper_parameters": [1]}, {"state_dict": [1]}, {"state_dict": {"a": 1}},
     {"class_path": 3}],
    ids=str,
)  # fmt: skip
def test_checkpoints_of_other_things_are_no_checkpoints(change, tmp_path):
    torch.save({"class_path": "a", "state_dict": {}, "hyper_parameters": {}} | change, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        load_model(tmp_path / "a.ckpt")
    with pytest.raises(SystemExit, match=r"error: .*a\.ckpt"):
        train.main(["sample", f"--ckpt_path={tmp_path}/a.ckpt"])


def test_damaged_weights_of_an_old_torch_are_named(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(VAE(hidden=(8,), latent=2).state_dict(), path, _use_new_zipfile_serialization=False)
    refused = 0
    for content in mutations(path.read_bytes()):
        path.write_bytes(content)
        try:
            init_from(VAE(hidden=(8,), latent=2), str(path), partly=True)
        except CheckpointError as error:
            assert "old.pth" in str(error)
            refused += 1
    assert refused > 50  # such files have no checksums: other numbers in the weights are loaded


def test_a_damaged_zip_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as file:
        file.writestr("../evil", "evil")
    with pytest.raises(CheckpointError, match=r"a\.ckpt is damaged or no checkpoint"):
        load_model(tmp_path / "a.ckpt")
    assert not (tmp_path.parent / "evil").exists()
