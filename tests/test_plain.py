"""Checkpoints hold plain types, whatever constructors, callbacks and optimisers were given."""

import json
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from lightning.pytorch import Callback
from test_contract import ARGUMENTS, PARAMS, data, sources, trainer
from torch.utils.data import DataLoader

import datamodules
from datamodules import FashionMNIST, ImageFolder, PairedFolder
from datamodules.pictures import Pictures
from lit_generative.checkpoints.load import load_model, read_checkpoint
from lit_generative.checkpoints.plain import accepted, plain
from lit_generative.models.vae import VAE

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training"),
]


def as_numpy(value):
    """Numbers as numpy's."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return np.int64(value) if isinstance(value, int) else np.float64(value)


class Remembers(Callback):
    def state_dict(self):
        return {"best": np.float32(0.5), "seen": np.arange(3), "file": Path("a") / "b", "nested": [(np.bool_(True),)]}


@pytest.mark.parametrize("cls", PARAMS)
def test_a_model_of_numpy_numbers_has_a_checkpoint_that_loads(cls, data_dir, tmp_path):
    known = {**cls(**ARGUMENTS[cls.__name__]).hparams}
    model = cls(**{name: as_numpy(value) for name, value in known.items()})
    assert json.loads(json.dumps(dict(model.hparams)))["lr"] == known["lr"] and type(model.hparams["lr"]) is float
    fit = trainer(tmp_path, max_steps=2, limit_val_batches=0, enable_checkpointing=False, callbacks=[Remembers()])
    fit.fit(model, datamodule=data(model, data_dir))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    saved = read_checkpoint(tmp_path / "a.ckpt")
    (state,) = (entry for name, entry in saved["callbacks"].items() if "Remembers" in name)
    assert state == {"best": 0.5, "seen": [0, 1, 2], "file": "a/b", "nested": [(True,)]}
    again, c = load_model(tmp_path / "a.ckpt"), sources(model, 2)
    draws = [(torch.manual_seed(1), m.eval().sample(2, c))[1] for m in (model, again)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("lr", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), 0.5])
def test_hyper_parameters_are_plain_at_once(lr):
    model = VAE(lr=lr, hidden=np.array([8]), image_shape=(np.int64(1), 4, 4), test_k=(np.int32(2),))
    assert type(model.hparams["lr"]) is float and model.hparams["lr"] == 0.5
    assert model.hparams["hidden"] == [8] and type(model.hparams["image_shape"][0]) is int
    assert model.hparams_initial == model.hparams


@pytest.mark.parametrize(
    "name", [n for n in datamodules.__all__ if n not in ("DataError", "ImageData", "DownloadedImages")]
)
def test_arguments_of_data_build_them_again(name, tmp_path):
    """And are all that a class takes: what it hands to its parents is not among them."""
    cls = getattr(datamodules, name)
    made = cls(data_dir=str(tmp_path))
    again = cls(**made.hparams)
    assert again.hparams == made.hparams and made.hparams.keys() == accepted(cls) - {"self"}


@pytest.mark.parametrize("cls", [FashionMNIST, ImageFolder, PairedFolder])
def test_data_may_be_given_paths_and_numpy_numbers(cls, tmp_path):
    made = cls(data_dir=tmp_path, batch_size=np.int64(4))
    assert made.hparams["data_dir"] == str(tmp_path) and type(made.hparams["batch_size"]) is int
    assert Pictures(tmp_path).hparams["data_dir"] == str(tmp_path)


class Own(LightningDataModule):
    """A user's, of which nothing is ours."""

    def __init__(self, folder, share):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return DataLoader([(torch.zeros(1, 28, 28), 0)] * 2, batch_size=2)

    def state_dict(self):
        return {"rows": np.int64(7)}


def test_what_a_users_datamodule_says_is_made_plain(tmp_path):
    fit = trainer(tmp_path, max_steps=1, limit_val_batches=0, enable_checkpointing=False)
    fit.fit(VAE(hidden=[4], latent=2), datamodule=Own(tmp_path, np.float64(0.5)))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    saved = read_checkpoint(tmp_path / "a.ckpt")
    assert saved["lit_generative"]["data"]["init_args"] == {"folder": str(tmp_path), "share": 0.5} and saved["Own"] == {
        "rows": 7
    }


def test_plain_keeps_what_is_plain():
    tensor = torch.ones(())
    value = {"a": Counter([1, 1]), "b": OrderedDict(c=(1, [None, "x"])), "d": tensor}
    same = plain(value)
    assert same == value and type(same["a"]) is Counter and type(same["b"]) is OrderedDict and same["d"] is tensor
    assert plain({"d": tensor}, tensors=False) == {"d": 1.0}
