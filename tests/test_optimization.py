"""Optimizers and schedules that the user chooses in place of a model's own."""

import math

import pytest
import torch
import yaml
from comparison import differing
from lightning.pytorch import Callback
from small_models import SMALL, slow
from stubs import trainer

import lit_generative.models
import train
from datamodules import FashionMNIST
from lit_generative.checkpoints import load_model, read_checkpoint
from lit_generative.models import VAE, WGANGP, RealNVP

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
MODELS = {
    "VAE": lambda: VAE(hidden=(4,), latent=2, lr=0.02, lr_decay_start=0.5),
    "WGANGP": lambda: WGANGP(width=4, latent=4, lr=0.02, n_critic=2),
}


class Rates(Callback):
    """The learning rates of every step, one for each optimizer."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        self.seen.append([o.param_groups[0]["lr"] for o in trainer.optimizers])


def fit(model, data_dir, folder, epochs=2, ckpt_path=None):
    """Epochs of three batches, and what was saved after them."""
    rates = Rates()
    run = trainer(folder, max_epochs=epochs, limit_train_batches=3, limit_val_batches=1, callbacks=[rates])
    data = FashionMNIST(str(data_dir), batch_size=8, val_size=16)
    run.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    run.save_checkpoint(folder / "a.ckpt")
    return run, rates.seen, read_checkpoint(folder / "a.ckpt")


def groups(optimizer):
    return [{id(p) for p in group["params"]} for group in optimizer.param_groups]


@pytest.mark.parametrize("name", [pytest.param(n, marks=slow(n)) for n in lit_generative.models.__all__])
def test_every_network_of_every_model_gets_the_chosen_one_at_its_own_rate(name):
    model = getattr(lit_generative.models, name)(**SMALL[name])
    model.lr_decay_start, model.lr_warmup_steps = 1.0, 0
    own = model.default_optimizers()
    model.use_optimizer("SGD", momentum=0.9)
    chosen = [entry["optimizer"] for entry in model.configure_optimizers()]
    assert len(chosen) == len(own) and all(type(o) is torch.optim.SGD for o in chosen)
    for a, b in zip(chosen, own, strict=True):
        assert groups(a) == groups(b) and all(group["momentum"] == 0.9 for group in a.param_groups)
        assert [g["lr"] for g in a.param_groups] == [g["lr"] for g in b.param_groups]


def test_what_the_papers_groups_have_beside_rates_is_replaced():
    model = RealNVP(width=4, depth=1, weight_decay=0.3)
    model.use_optimizer("AdamW", lr=0.5, weight_decay=0.1)
    (entry,) = model.configure_optimizers()
    assert {(g["lr"], g["weight_decay"]) for g in entry["optimizer"].param_groups} == {(0.5, 0.1)}


@pytest.mark.parametrize("name", MODELS)
def test_a_run_in_two_parts_is_the_run_in_one(name, data_dir, tmp_path):
    """The second part is of a model to which nothing was said: the checkpoint says it."""

    def new(seed):
        torch.manual_seed(seed)
        return MODELS[name]()

    def chosen():
        model = new(0)
        model.use_optimizer("AdamW", weight_decay=0.05)
        model.use_lr_scheduler("CosineAnnealingLR", T_max=4)
        return model

    run, rates, whole = fit(chosen(), data_dir, tmp_path / "whole", epochs=4)
    assert all(type(o) is torch.optim.AdamW and o.param_groups[0]["weight_decay"] == 0.05 for o in run.optimizers)
    expected = [0.01 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4) for _ in range(3)]
    for of_one in zip(*rates, strict=True):
        assert list(of_one) == pytest.approx(expected)
    fit(chosen(), data_dir, tmp_path / "half", epochs=2)
    _, _, again = fit(new(7), data_dir, tmp_path / "again", epochs=4, ckpt_path=tmp_path / "half" / "a.ckpt")
    for saved in (whole, again):
        del saved["lit_generative"]["training_seconds"], saved["callbacks"]
    assert whole["lit_generative"]["optimization"]["optimizer"]["class_path"].endswith("AdamW")
    assert differing(whole, again) == []


def test_steps_are_an_interval_too_and_plateaus_follow_the_models_monitor(data_dir, tmp_path):
    model = MODELS["VAE"]()
    model.use_lr_scheduler("ExponentialLR", interval="step", gamma=0.5)
    _, rates, _ = fit(model, data_dir, tmp_path / "a")
    assert [rate for (rate,) in rates] == pytest.approx([0.02 * 0.5**n for n in range(6)])
    model = MODELS["VAE"]()
    model.use_lr_scheduler("ReduceLROnPlateau", patience=0, factor=0.5, threshold=1e9)  # nothing is good enough
    _, rates, _ = fit(model, data_dir, tmp_path / "b", epochs=3)
    assert [rate for (rate,) in rates[::3]] == pytest.approx([0.02, 0.01, 0.005])


def test_what_cannot_be_chosen_is_refused(data_dir, tmp_path):
    model = MODELS["VAE"]()
    with pytest.raises(ValueError, match="there is no Optimizer called Adamm"):
        model.use_optimizer("Adamm")
    with pytest.raises(ValueError, match="AdamW has no argument wd: it has lr, betas, eps, weight_decay"):
        model.use_optimizer("AdamW", wd=0.1)
    with pytest.raises(ValueError, match="every epoch or every step, got batch"):
        model.use_lr_scheduler("ExponentialLR", interval="batch", gamma=0.5)
    model.use_lr_scheduler("CosineAnnealingLR")
    with pytest.raises(ValueError, match=r"CosineAnnealingLR: .*T_max"):
        fit(model, data_dir, tmp_path / "a")
    game = MODELS["WGANGP"]()
    game.use_lr_scheduler("ReduceLROnPlateau")
    with pytest.raises(ValueError, match="WGANGP has no loss to watch"):
        fit(game, data_dir, tmp_path / "b")
    model = MODELS["VAE"]()
    model.use_optimizer("AdamW")
    fit(model, data_dir, tmp_path / "c")
    other = MODELS["VAE"]()
    other.use_optimizer("SGD")
    with pytest.raises(ValueError, match=r"trained with another optimizer .*AdamW.* than .*SGD.*--init_from"):
        fit(other, data_dir, tmp_path / "d", epochs=3, ckpt_path=tmp_path / "c" / "a.ckpt")


def test_the_command_line_takes_them_as_lightnings_does(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    monkeypatch.chdir(tmp_path)
    common = ["--data.batch_size=16", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
              "--trainer.callbacks=[]", "--trainer.limit_train_batches=2"]  # fmt: skip
    new = ["fit", "--model=VAE", "--model.hidden=[4]", "--model.latent=2", "--model.lr=0.02", "--data=FashionMNIST"]
    train.main(
        [*new, *common, "--optimizer=AdamW", "--optimizer.weight_decay=0.05", "--lr_scheduler=CosineAnnealingLR",
         "--lr_scheduler.T_max=100", "--trainer.max_epochs=1", "--name=a"]
    )  # fmt: skip
    run = tmp_path / "runs" / "a" / "version_0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert config["lr_scheduler"]["init_args"]["T_max"] == 100 and config["lr_scheduler_interval"] == "epoch"
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")
    (state,) = saved["optimizer_states"]
    assert state["param_groups"][0]["weight_decay"] == 0.05 and state["param_groups"][0]["initial_lr"] == 0.02
    load_model(run / "checkpoints" / "last.ckpt")

    train.main(["fit", f"--ckpt_path={run}/checkpoints/last.ckpt", *common, "--trainer.max_epochs=2", "--name=b"])
    again = yaml.safe_load((tmp_path / "runs" / "b" / "version_0" / "config.yaml").read_text())
    assert again["optimizer"]["init_args"] == config["optimizer"]["init_args"]
    train.main(["fit", f"--config={run}/config.yaml", "--name=c"])  # the recorded configuration does the same
    after = read_checkpoint(tmp_path / "runs" / "c" / "version_0" / "checkpoints" / "last.ckpt")
    assert differing(after["optimizer_states"], saved["optimizer_states"]) == []

    train.main([*new, *common, "--optimizer=SGD", "--optimizer.lr=1e-6", "--trainer.max_epochs=1", "--name=d"])
    rate = read_checkpoint(tmp_path / "runs" / "d" / "version_0" / "checkpoints" / "last.ckpt")
    assert rate["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-6
    with pytest.raises(SystemExit, match=r"^error: there is no optimizer called Adamm: choose from ASGD, .*AdamW"):
        train.main([*new, "--optimizer=Adamm"])
