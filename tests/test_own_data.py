"""Data of one's own: empty sets, classes that a checkpoint names, and the evaluation of what is no data set of ours."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from PIL import Image
from stubs import Density, trainer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import train
from callbacks import OODScores
from callbacks.evaluation._other_sets import other_sets
from datamodules import MNIST, DataError, FashionMNIST, ImageFolder
from lit_generative.checkpoints.load import CheckpointError, find_class, import_classes
from lit_generative.errors import UserError
from lit_generative.models.vae import VAE

pytestmark = pytest.mark.slow

OWN = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class {name}(LightningDataModule):
    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()

    def _loader(self):
        x = torch.rand(self.hparams.count, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset((x * 255).round() / 255, torch.zeros(len(x), dtype=torch.long)), 4)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader
"""


def images(count):
    return DataLoader(TensorDataset(torch.zeros(count, 1, 28, 28), torch.zeros(count, dtype=torch.long)), 4)


class Nothing(IterableDataset):
    """That does not know its length."""

    def __iter__(self):
        return iter(())


@pytest.fixture
def run(data_dir, tmp_path, monkeypatch):
    """Call a subcommand on a small VAE's checkpoint, in an empty folder."""
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    monkeypatch.chdir(tmp_path)
    fitting = trainer(tmp_path, max_steps=1, limit_val_batches=0, logger=False)
    fitting.fit(VAE(hidden=(4,), latent=2), datamodule=FashionMNIST(batch_size=16))
    fitting.save_checkpoint("a.ckpt")
    quick = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--ckpt_path=a.ckpt"]
    quick += ["--model.test_k=[1,2]"]
    return lambda subcommand, *args: train.main([subcommand, *quick, *map(str, args)])


@pytest.fixture
def pictures(tmp_path):
    for i in range(12):
        (tmp_path / "pictures" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), i * 20).save(tmp_path / "pictures" / "a" / f"{i}.png")
    return ImageFolder(tmp_path / "pictures", 28, 1, test_size=3, cache_dir=tmp_path / "cache")


EMPTY = {"no images": lambda: images(0), "no loader": lambda: [], "an end at once": lambda: DataLoader(Nothing())}


# -- empty sets ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Total length of")  # which is all that Lightning says
@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # of sums over nothing
@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("stage, name", [("validate", "validation"), ("test", "test"), ("predict", "prediction")])
def test_a_stage_without_images_is_an_error(stage, name, empty, tmp_path):
    model, runs = VAE(hidden=(4,), latent=2), trainer(tmp_path, logger=False)
    getattr(runs, stage)(model, images(4))
    with pytest.raises(UserError, match=f"the loader gives no images for {name}: that set is empty"):
        getattr(runs, stage)(model, empty())
    limited = trainer(tmp_path, logger=False, limit_val_batches=0, limit_test_batches=0, limit_predict_batches=0)
    getattr(limited, stage)(model, images(4))  # none asked for


@pytest.mark.filterwarnings("ignore:Total length of", "ignore:You defined a `validation_step`")
def test_a_training_without_images_or_with_an_empty_validation_is_an_error(tmp_path):
    model, options = VAE(hidden=(4,), latent=2), {"logger": False, "max_epochs": 1}
    for loaders, name in (((images(0), images(4)), "training"), ((images(4), images(0)), "validation")):
        with pytest.raises(UserError, match=f"no images for {name}"):
            trainer(tmp_path, **options).fit(model, *loaders)
    trainer(tmp_path, **options).fit(model, images(4))  # without validation, by choice


def test_a_folder_without_test_images_says_so(run, pictures, tmp_path):
    data = ["--data=ImageFolder", f"--data.data_dir={pictures.data_dir}", "--data.image_size=28", "--data.channels=1"]
    for options, stage, name in (("--data.test_size=0", "test", "test"), ("--data.val_size=0", "validate", "val")):
        with pytest.raises(SystemExit, match=f"^error: ImageFolder gives no images for {name}"):
            run(stage, *data, options, f"--data.cache_dir={tmp_path}/cache", "--trainer.callbacks=[]")


def test_fewer_test_images_than_processes_are_refused(data_dir, monkeypatch):
    data = FashionMNIST(data_dir=str(data_dir))
    data.setup("test")
    monkeypatch.setattr(FashionMNIST, "_ranks", lambda self: (0, 41))
    with pytest.raises(DataError, match="41 processes need as many test images, got 40: use fewer"):
        data.test_dataloader()


# -- classes ---------------------------------------------------------------------------------------


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write a module with a class of that name, which nothing has imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written = []

    def write(name):
        (tmp_path / f"own_{name.lower()}.py").write_text(OWN.format(name=name))
        written.append(f"own_{name.lower()}")
        return f"own_{name.lower()}.{name}"

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("how", ["argument", "class_path", "recipe"])
def test_what_the_command_line_names_is_imported_before_the_checkpoint_is_read(how, own_module, run, tmp_path, capsys):
    path = own_module(f"Data{how.title().replace('_', '')}")
    checkpoint = torch.load("a.ckpt", weights_only=True)
    described = {"class_path": path, "init_args": {"count": 12}}  # as of a run with this class
    checkpoint["lit_generative"]["data"] = described
    torch.save(checkpoint, "a.ckpt")
    Path("own.yaml").write_text(yaml.safe_dump({"data": {"class_path": path}}))
    named = {"argument": ["--data", path], "class_path": [f"--data.class_path={path}"], "recipe": ["--config=own.yaml"]}
    with pytest.raises(SystemExit, match=rf"the class {path}, which is not known: .*--data {path}\)"):
        run("test")
    run("test", *named[how], "--trainer.callbacks=[]")
    assert path.rpartition(".")[2] in capsys.readouterr().out


def test_classes_are_found_at_any_depth_and_nothing_else_is_imported(own_module):
    paths = [own_module(name) for name in ("Inner", "Listed", "Other")]
    import_classes({"model": {"init_args": {"autoencoder": {"class_path": paths[0]}}}, "a": [{"class_path": paths[1]}],
                    "name": paths[2], "b": {"class_path": "no.such.module"}, "c": {"class_path": 3}})  # fmt: skip
    for path in paths[:2]:
        assert find_class(path, LightningDataModule).__name__ in path
    with pytest.raises(CheckpointError, match="import its module first"):
        find_class(paths[2], LightningDataModule)


# -- evaluation ------------------------------------------------------------------------------------


def test_evaluation_of_data_of_ones_own_leaves_out_what_it_cannot(own_module, run, tmp_path, capsys):
    path = own_module("Foreign")
    run("test", "--data", path, "--data.count=8", "--config", Path(__file__).parents[1] / "configs" / "evaluate.yaml")
    said = capsys.readouterr().err
    assert "no Fréchet distance: FID needs data that follow `HasImages`, but Foreign has no `stored`" in said
    assert "no out-of-distribution scores: OODScores needs data that follow `ComparesImages`" in said
    own = sys.modules[path.partition(".")[0]].Foreign()
    with pytest.raises(
        TypeError, match=r"OODScores needs data that follow `ComparesImages`, but Foreign has no `.*`stored`"
    ):
        trainer(tmp_path, callbacks=[OODScores([MNIST()])]).test(Density(), datamodule=own, verbose=False)


def test_other_sets_are_not_sought_in_a_folder_of_pictures(pictures, data_dir, tmp_path, monkeypatch, caplog):
    fetched = []
    monkeypatch.setattr(MNIST, "fetch", lambda self, root: fetched.append(root))
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    callback = OODScores([MNIST()], synthetic=False, resamples=20)
    found = trainer(tmp_path, callbacks=[callback]).test(Density(), datamodule=pictures, verbose=False)[0]
    assert "ood/MNIST/auroc_likelihood" in found
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(tmp_path / "pictures"))  # where ImageFolder looks as well
    for own in (pictures, ImageFolder(None, 28, 1, test_size=3, cache_dir=tmp_path / "cache")):
        callback = OODScores([MNIST()], synthetic=False, resamples=20, strict=False)
        trainer(tmp_path, callbacks=[callback], logger=False).test(Density(), datamodule=own, verbose=False)
    assert "without MNIST: MNIST was not found" in caplog.text and not fetched
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["a"]


def test_sets_that_lie_beside_the_models_own_are_found_there(data_dir):
    (digits,) = other_sets(FashionMNIST(data_dir=str(data_dir)), [MNIST()]).values()
    assert digits.data_dir == data_dir
