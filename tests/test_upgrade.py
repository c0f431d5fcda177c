"""Checkpoints, folders and command lines of before arguments were renamed."""

import json
from pathlib import Path

import pytest
import torch
from comparison import differing
from lightning.pytorch import Callback
from stubs import trainer
from torch.testing import assert_close

import train
from callbacks import EMA
from datamodules import MNIST
from lit_generative.checkpoints import CheckpointError, from_pretrained, init_from, load_model, read_checkpoint
from lit_generative.checkpoints.record import RENAMED, RENAMED_VALUES, upgrade
from lit_generative.models import VAE, RealNVP

# two epochs of two batches of MNIST, written before arguments were renamed: a WGAN with EMA, a LatentFlow in its second
# stage with a tenth of the images' pixels
ASSETS = Path(__file__).parent / "assets"
WGAN, FLOW = ASSETS / "before_wgan.ckpt", ASSETS / "before_flow.ckpt"


def test_old_checkpoints_load_with_todays_arguments():
    wgan, flow = load_model(WGAN), load_model(FLOW)
    assert wgan.hparams["accumulate_grad_batches"] == 1 and "accumulate" not in wgan.hparams
    assert flow.hparams["autoencoder_fraction"] == 0.5 and flow.hparams["lr_decay_start"] == 0.75
    for path, model in ((WGAN, wgan), (FLOW, flow)):
        saved = torch.load(path, weights_only=True)
        assert differing(dict(model.state_dict()), dict(saved["state_dict"])) == []
        assert model.sample(2).shape == (2, *saved["hyper_parameters"]["image_shape"])


class AtTheStart(Callback):
    """The weights, the averages and the counters with which training begins."""

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        if not hasattr(self, "weights"):
            self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
            self.step, self.training_seconds = trainer.global_step, model.training_seconds
            self.averages = {
                f"{name}.{key}": p.detach().clone()
                for callback in trainer.callbacks if isinstance(callback, EMA)
                for name, average in callback._averages.items() for key, p in average.module.named_parameters()
            }  # fmt: skip


def go_on(path, folder, data_dir, **data):
    """One more epoch from a checkpoint: what it started with, and what it saved."""
    model, seen = load_model(path).train(), AtTheStart()
    ema = [EMA(decay=0.9)] if path.stem.endswith("wgan") else []
    fit = trainer(folder, max_epochs=3, limit_train_batches=2, limit_val_batches=1, callbacks=[*ema, seen])
    images = MNIST(str(data_dir), batch_size=8, val_size=32, **data)
    fit.fit(model, datamodule=images, ckpt_path=path, weights_only=True)
    fit.save_checkpoint(folder / "after.ckpt")
    return seen, read_checkpoint(folder / "after.ckpt")


def test_training_goes_on_from_an_old_checkpoint_with_averages(data_dir, tmp_path):
    before = torch.load(WGAN, weights_only=True)
    seen, after = go_on(WGAN, tmp_path, data_dir)
    raw = before["ema"]["weights"]
    assert seen.step == 4 and seen.training_seconds == before["training_seconds"] > 0
    for name, value in raw.items():  # those that were averaged, and not their averages
        assert_close(seen.weights[name], value, atol=0, rtol=0)
        assert_close(seen.averages[name], before["state_dict"][name], atol=0, rtol=0)
    assert any(not torch.equal(value, before["state_dict"][name]) for name, value in raw.items())
    own = after["lit_generative"]
    assert own["run"]["steps"] == [6, 6, 48] and before["adversarial_steps"] == [4, 4, 32]
    assert own["ema"]["updates"] == {"generator": 6} and before["ema"]["updates"] == {"generator": 4}


def test_training_goes_on_in_the_stage_of_an_old_checkpoint(data_dir, tmp_path):
    _, after = go_on(FLOW, tmp_path, data_dir, image_size=16, resize="resize")
    before = torch.load(FLOW, weights_only=True)["state_dict"]
    assert after["lit_generative"]["run"]["flow_started"]
    changed = {name.split(".")[0] for name, v in after["state_dict"].items() if not torch.equal(v, before[name])}
    assert changed == {"flow"}  # the autoencoder is done


@pytest.mark.parametrize("path", [WGAN, FLOW], ids=["wgan", "flow"])
def test_going_on_from_an_old_checkpoint_is_going_on_from_the_same_in_todays_form(path, data_dir, tmp_path):
    data = {"image_size": 16, "resize": "resize"} if path == FLOW else {}
    _, old = go_on(path, tmp_path / "a", data_dir, **data)
    torch.save(read_checkpoint(path), tmp_path / path.name)
    _, new = go_on(tmp_path / path.name, tmp_path / "b", data_dir, **data)
    for saved in (old, new):
        del saved["lit_generative"]["training_seconds"]
    assert differing(old, new) == []


def test_old_averages_are_weights_to_start_from():
    before = torch.load(WGAN, weights_only=True)
    averaged, raw = (init_from(load_model(WGAN), str(WGAN), raw=raw) for raw in (False, True))
    for name, value in before["ema"]["weights"].items():
        assert torch.equal(raw.state_dict()[name], value)
        assert torch.equal(averaged.state_dict()[name], before["state_dict"][name])


@pytest.mark.parametrize(("before", "now"), RENAMED.items())
def test_every_renamed_argument_is_translated_also_of_a_model_within_another(before, now):
    vae = {"class_path": "lit_generative.models.vae.VAE", "init_args": {before: 1, "latent": 3}}
    checkpoint = {
        "class_path": "lit_generative.models.latent_flow.LatentFlow",
        "state_dict": {},
        "hyper_parameters": {before: 2, "autoencoder": vae},
    }
    upgrade(checkpoint)
    inner = checkpoint["hyper_parameters"].pop("autoencoder")
    assert checkpoint["hyper_parameters"] == {now: 2} and inner["init_args"] == {now: 1, "latent": 3}


def test_arguments_of_classes_of_others_are_theirs():
    checkpoint = {"class_path": "own.Model", "state_dict": {}, "hyper_parameters": {"share": 0.5, "target": "v"}}
    upgrade(checkpoint)
    assert checkpoint["hyper_parameters"] == {"share": 0.5, "target": "v"}


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    saved = read_checkpoint(WGAN)
    saved["lit_generative"]["version"] = 2
    torch.save(saved, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt has format version 2, and this lit-generative reads version 1"):
        load_model(tmp_path / "a.ckpt")


def test_folders_of_before_load(tmp_path):
    RealNVP(stack="fully_connected", couplings=2, width=4, depth=1, lr_decay_start=0.5).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["init_args"] |= {"stack": "dense", "decay_from": config["init_args"].pop("lr_decay_start")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = from_pretrained(tmp_path)
    assert model.hparams["lr_decay_start"] == 0.5 and model.hparams["stack"] == "fully_connected"


@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        *([[f"--model={'RealNVP' if name == 'stack' else 'VAE'}", f"--model.{name}={before}"], f"{before} is now {now}"]
          for (name, before), now in RENAMED_VALUES.items()),
        *([["--model=VAE", f"--model.{before}=1"], f"{before} is now {now}"] for before, now in RENAMED.items()),
        (["--model=VAE", "--model.init_from=a.ckpt"], "write --init_from in place of --model.init_from"),
        (["--model=VAE", "--trainer.callbacks=Film"], "Film is now TrainingAnimation"),
        (["--model=VAE", "--trainer.callbacks=callbacks.NoisingFilm"], "NoisingFilm is now NoisingAnimation"),
    ],
)  # fmt: skip
def test_old_names_on_the_command_line_say_what_to_write_instead(args, remedy):
    with pytest.raises(SystemExit, match=rf"^error: .*: {remedy}, see CHANGELOG\.md"):
        train.main(["fit", "--data=MNIST", *args])


def test_the_changelog_has_every_renamed_argument():
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    for before, now in [*RENAMED.items(), *((before, now) for (_, before), now in RENAMED_VALUES.items())]:
        assert f"`{before}`" in text and f"`{now}`" in text
    assert VAE(lr_decay_start=0.5).hparams["lr_decay_start"] == 0.5
