"""Averaged weights: when they move, where they are in place, what a checkpoint holds."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from stubs import Sampler, trainer
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from callbacks import EMA
from lit_generative.checkpoints.load import load_model
from lit_generative.models.dcgan import DCGAN


def batches(n=24):
    x = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.zeros(n)), 4)


class Weights(Callback):
    """The generator's first weight after every batch, and what validation sees."""

    def __init__(self):
        self.raw, self.seen = [], []

    def on_train_batch_end(self, trainer, model, *_):
        self.raw.append(model.generator.net[1].weight.detach().clone())

    def on_validation_batch_end(self, trainer, model, *_):
        self.seen.append(model.generator.net[1].weight.detach().clone())


def fit(folder, *callbacks, model=None, **kwargs):
    torch.manual_seed(0)
    model = model or DCGAN(width=4, latent=4)
    options = {"max_epochs": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0, "logger": False}
    run = trainer(folder, callbacks=list(callbacks), **(options | kwargs))
    run.fit(model, batches(), batches())
    return model, run


def average(weights, decay):
    """By hand: the first update copies, those that follow move by 1 - min(decay, (1 + n) / (10 + n))."""
    mean = weights[0].double()
    for n, w in enumerate(weights[1:], 1):
        d = min(decay, (1 + n) / (10 + n))
        mean = d * mean + (1 - d) * w.double()
    return mean.float()


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("every", [1, 2])
def test_validation_sees_the_average_of_the_weights(order, every, tmp_path):
    watch = Weights()
    fit(tmp_path, *[watch, EMA(decay=0.3, every_n_steps=every)][::order])
    assert len(watch.raw) == 6
    assert_close(watch.seen[-1], average(watch.raw[every - 1 :: every], 0.3))


def test_training_does_not_notice(tmp_path):
    with_ema, without = Weights(), Weights()
    fit(tmp_path, with_ema, EMA(), max_epochs=2)
    fit(tmp_path, without, max_epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(with_ema.raw, without.raw, strict=True))


def test_steps_are_counted_that_change_the_generator(tmp_path):
    """With n_critic 3 only batches 3 and 6 do."""
    watch = Weights()
    fit(tmp_path, watch, EMA(decay=0.3), model=DCGAN(width=4, latent=4, n_critic=3))
    assert_close(watch.seen[-1], average([watch.raw[2], watch.raw[5]], 0.3))


def test_a_checkpoint_samples_with_the_average_and_keeps_the_raw_weights(tmp_path):
    watch = Weights()
    model, run = fit(tmp_path, watch, EMA(decay=0.5))
    run.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    expected = average(watch.raw, 0.5)
    key = "generator.net.1.weight"
    assert_close(checkpoint["state_dict"][key], expected)
    assert_close(load_model(tmp_path / "a.ckpt").generator.net[1].weight.detach(), expected)
    assert torch.equal(checkpoint["lit_generative"]["training_weights"][key], watch.raw[-1])
    assert_close(model.generator.net[1].weight.detach(), expected)  # whoever samples now has the average too
    # buffers are the model's own, copied
    assert torch.equal(checkpoint["state_dict"]["generator.net.2.running_mean"], model.generator.net[2].running_mean)


def test_weights_in_parts_are_refused():
    with pytest.raises(ValueError, match="EMA needs whole weights, but FSDP shards them"):
        EMA(["net"]).setup(SimpleNamespace(strategy=FSDPStrategy()), Sampler(), "fit")


def test_a_second_fit_goes_on_from_the_raw_weights(tmp_path):
    watch, ema = Weights(), EMA(decay=0.9)
    model, _ = fit(tmp_path, watch, ema)
    last, seen = watch.raw[-1], []

    class First(Callback):
        def on_train_start(self, trainer, model):
            seen.append(model.generator.net[1].weight.detach().clone())

    again = trainer(tmp_path, callbacks=[ema, First()], logger=False, max_epochs=1)
    again.fit(model, batches(), batches())
    assert torch.equal(seen[0], last)


def test_a_second_model_starts_from_its_own_weights(tmp_path):
    ema, seen = EMA(decay=0.9), []

    class First(Callback):
        def on_train_start(self, trainer, model):
            seen.append(model.generator.net[1].weight.detach().clone())

    fit(tmp_path, ema)
    torch.manual_seed(5)
    model = DCGAN(width=4, latent=4)
    own = model.generator.net[1].weight.detach().clone()
    fit(tmp_path, ema, First(), model=model)
    assert torch.equal(seen[0], own)


@pytest.mark.parametrize("look", ["validate", "test", "predict"])
def test_a_checkpoint_is_looked_at_with_its_average(look, tmp_path):
    """By the Trainer that trained, too, whose callback holds averages of a later step."""
    watch, seen = Weights(), []

    class Look(Callback):
        def on_validation_batch_end(self, trainer, model, *_):
            seen.append(model.generator.net[1].weight.detach().clone())

        on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    keep = ModelCheckpoint(tmp_path / "c", filename="{step}", every_n_train_steps=3, save_top_k=-1)
    model, run = fit(tmp_path, watch, EMA(decay=0.5), keep, Look(), enable_checkpointing=True)
    seen.clear()
    getattr(run, look)(model, batches(4), ckpt_path=tmp_path / "c" / "step=3.ckpt", weights_only=True)
    assert_close(seen[0], average(watch.raw[:3], 0.5))


def test_training_goes_on_from_raw_weights_with_or_without_an_average(tmp_path):
    watch = Weights()
    _, run = fit(tmp_path, watch, EMA(decay=0.9))
    run.save_checkpoint(tmp_path / "a.ckpt")
    for callbacks in ([], [EMA()], [EMA(networks=("generator", "discriminator"))]):
        seen = []

        class First(Callback):
            def on_train_start(self, trainer, model, seen=seen):
                seen.append(model.generator.net[1].weight.detach().clone())

        again = trainer(tmp_path, callbacks=[*callbacks, First()], logger=False, max_epochs=2, limit_val_batches=1)
        again.fit(DCGAN(width=4, latent=4), batches(), batches(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
        assert torch.equal(seen[0], watch.raw[-1])


def test_a_run_that_had_no_average_gets_one(tmp_path):
    before, watch = Weights(), Weights()
    _, run = fit(tmp_path, before)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer(tmp_path, callbacks=[watch, EMA(decay=0.3)], logger=False, max_epochs=2, limit_val_batches=1)
    again.fit(DCGAN(width=4, latent=4), batches(), batches(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert_close(watch.seen[-1], average(watch.raw, 0.3))


def test_names_of_networks_are_checked_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="DCGAN has no network denoiser; choose from generator, discriminator"):
        fit(tmp_path, EMA(networks=("denoiser",)))
