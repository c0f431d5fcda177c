"""The game of two networks: who moves when, and what each leaves alone."""

from itertools import pairwise
from unittest.mock import Mock

import processes
import pytest
import tiny_game
import torch
from comparison import differing
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from stubs import trainer
from tiny_game import Game
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from callbacks import EMA
from datamodules import FashionMNIST
from lit_generative.families.adversarial import frozen
from lit_generative.models.dcgan import DCGAN
from lit_generative.models.wgan import WGAN, WGANGP


def loader(n=24, batch_size=4):
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.linspace(-1, 1, n)[:, None]), batch_size)


def images(n=24, batch_size=4):
    x = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.zeros(n)), batch_size)


def fit(model, batches, folder, *callbacks, ckpt_path=None, **kwargs):
    run = trainer(
        folder, callbacks=list(callbacks), logger=False, **({"max_epochs": 1, "limit_val_batches": 1} | kwargs)
    )
    run.fit(model, batches, batches, ckpt_path=ckpt_path, **({"weights_only": True} if ckpt_path else {}))
    return run


class States(Callback):
    """What the two networks are after every batch."""

    def __init__(self):
        self.generator, self.discriminator, self.steps, self.lr = [], [], [], []

    def on_train_batch_end(self, trainer, model, *_):
        for network, states in ((model.generator, self.generator), (model.discriminator, self.discriminator)):
            states.append({name: value.clone() for name, value in network.state_dict().items()})
        self.steps.append(trainer.global_step)
        self.lr.append([o.param_groups[0]["lr"] for o in trainer.optimizers])


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_critic_step_leaves_the_generator_and_its_buffers(tmp_path):
    states = States()
    fit(DCGAN(width=4, latent=4, n_critic=3), images(), tmp_path, states)
    moved = [not same(a, b) for a, b in pairwise(states.generator)]
    assert moved == [False, True, False, False, True]  # batches 2..6: the third and the sixth
    assert not any(same(a, b) for a, b in pairwise(states.discriminator))


def test_a_generator_step_leaves_the_discriminator_and_its_buffers(tmp_path):
    states = States()
    fit(DCGAN(width=4, latent=4), images(), tmp_path, states)
    counters = [v for name, v in states.discriminator[-1].items() if name.endswith("num_batches_tracked")]
    assert counters and all(int(v) == 2 * 6 for v in counters)  # real and fake images of six batches, no third pass
    model = DCGAN(width=4, latent=4, spectral_norm=True)
    batch, before = (
        (torch.rand(4, 1, 28, 28), None),
        {k: v.clone() for k, v in model.discriminator.state_dict().items()},
    )
    with frozen(model.discriminator):
        model.generator_loss(batch, model.generate(batch))["loss_generator"].backward()
    assert same(before, model.discriminator.state_dict())
    assert all(p.grad is None and p.requires_grad for p in model.discriminator.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())


def test_frozen_leaves_what_the_user_froze():
    network = nn.Linear(1, 1)
    network.bias.requires_grad_(False)
    with frozen(network):
        assert not network.weight.requires_grad
    assert network.weight.requires_grad and not network.bias.requires_grad


@pytest.mark.parametrize("n_critic", [1, 2])
def test_accumulation_equals_larger_batches(n_critic, tmp_path):
    """Twice four images a step are eight, the generator's gradients against the same discriminator; 20 = 8 + 8 + 4."""
    models = []
    for size, accumulate_grad_batches in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        models.append(Game(n_critic=n_critic, accumulate_grad_batches=accumulate_grad_batches))
        fit(models[-1], loader(20, size), tmp_path, max_epochs=2)
    assert models[0].discriminator_steps == models[1].discriminator_steps == 6
    assert models[0].generator_steps == models[1].generator_steps == 6 // n_critic
    assert_close(models[0].state_dict(), models[1].state_dict(), atol=1e-6, rtol=1e-5)


def test_gradients_are_clipped(tmp_path):
    norms = []

    class Watching(Game):
        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)
            grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
            norms.append(float(torch.stack([g.norm() for g in grads]).norm()))

    fit(Watching(clip=1e-3), loader(), tmp_path)
    assert len(norms) == 12 and max(norms) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("n_critic", [1, 5])
def test_steps_and_schedules_count_batches(n_critic, tmp_path):
    states = States()
    run = fit(Game(n_critic=n_critic, decay=True), loader(), tmp_path, states, max_epochs=-1, max_steps=8)
    assert run.global_step == 8 and states.steps == list(range(1, 9))
    assert [lr[0] for lr in states.lr] == pytest.approx([0.1 * 0.5**n for n in range(1, 9)])  # every batch
    assert [lr[1] for lr in states.lr] == pytest.approx([0.1] * 6 + [0.05] * 2)  # every epoch of six


def test_n_critic_goes_on_over_epochs_and_a_resume(tmp_path):
    """Four batches an epoch, n_critic 3: the generator moves with batches 3, 6, 9, 12."""
    states = States()
    fit(Game(n_critic=3), loader(16), tmp_path, states, max_epochs=3)

    def moves(states, first):
        return [i + 2 for i, (a, b) in enumerate(pairwise(states), first) if not same(a, b)]

    assert moves(states.generator, 0) == [3, 6, 9, 12]
    keep = ModelCheckpoint(tmp_path / "c", save_last=True)
    fit(Game(n_critic=3), loader(16), tmp_path, keep, max_epochs=1, enable_checkpointing=True)
    rest = States()
    fit(Game(n_critic=3), loader(16), tmp_path, rest, max_epochs=3, ckpt_path=tmp_path / "c" / "last.ckpt")
    assert moves(rest.generator, 4) == [6, 9, 12]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_training_resumes_bit_for_bit_with_averages(data_dir, tmp_path):
    def run(model, folder, ckpt_path=None):
        keep = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
        fitting = trainer(tmp_path, callbacks=[EMA(), keep], logger=False, enable_checkpointing=True)
        fitting.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return torch.load(tmp_path / folder / "epoch=1.ckpt", weights_only=True)

    torch.manual_seed(0)
    whole = run(DCGAN(width=4, latent=4, n_critic=2), "whole")
    torch.manual_seed(7)
    halves = run(DCGAN(width=4, latent=4, n_critic=2), "halves", tmp_path / "whole" / "epoch=0.ckpt")
    for key in ("state_dict", "optimizer_states"):
        assert_close(halves[key], whole[key], atol=0, rtol=0)
    assert differing(halves["lit_generative"]["run"], whole["lit_generative"]["run"]) == []
    for key in ("training_weights", "ema"):
        assert_close(halves["lit_generative"][key], whole["lit_generative"][key], atol=0, rtol=0)


@pytest.mark.parametrize(
    "flag, value, own",
    [("gradient_clip_val", 0.5, "clip 0.5"), ("accumulate_grad_batches", 4, "accumulate_grad_batches 4")],
)
def test_flags_of_the_trainer_point_to_the_models_own(flag, value, own, tmp_path):
    with pytest.raises(MisconfigurationException, match=f"Game optimises two networks .*--model.{own}"):
        fit(Game(), loader(), tmp_path, **{flag: value})


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True, "static_graph": True}])
def test_strategies_that_would_fail_are_refused_with_the_remedy(options):
    model = Game()
    model._trainer = Mock(strategy=DDPStrategy(**options), datamodule=None)
    with pytest.raises(ValueError, match=r"set --trainer.strategy ddp_find_unused_parameters_true"):
        model.setup("fit")


def trained_on(number, folder, *name):
    """What tiny_game.py writes on so many processes."""
    path = folder / f"{number}.pt"
    for done in processes.run_together(number, tiny_game.main, number, path, *name, folder=folder):
        assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path, weights_only=True)


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    one, two = trained_on(1, tmp_path), trained_on(2, tmp_path)
    assert one["global_step"] == two["global_step"] == 12
    assert_close(two["weights"], one["weights"], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Pix2Pix", "CycleGAN"])
def test_two_processes_of_a_translator_are_one_with_the_doubled_batch(name, tmp_path):
    """With instance norm, since batch norm cannot be synchronised on CPUs."""
    one, two = trained_on(1, tmp_path, name), trained_on(2, tmp_path, name)
    assert one["global_step"] == two["global_step"] == 12 and two["spread"] == 0
    # a bias before a norm has no effect, and a gradient of rounding errors that Adam blows up
    a, b = ({k: v for k, v in run["weights"].items() if k.endswith("weight")} for run in (two, one))
    assert_close(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("step", [3, 5, 8])
def test_resuming_within_an_accumulation_changes_nothing(step, data_dir, tmp_path):
    """Five batches an epoch, two a step: batches 3 and 8 are in the middle of one, 5 ends a shorter one."""

    def run(model, folder, ckpt_path=None):
        keep = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
        fitting = trainer(tmp_path, callbacks=[EMA(every_n_steps=2), keep], logger=False, enable_checkpointing=True)
        fitting.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return torch.load(tmp_path / folder / "step=10.ckpt", weights_only=True)

    torch.manual_seed(0)
    whole = run(WGANGP(width=4, latent=4, n_critic=2, accumulate_grad_batches=2), "whole")
    torch.manual_seed(7)
    resumed = run(
        WGANGP(width=4, latent=4, n_critic=2, accumulate_grad_batches=2),
        "resumed",
        tmp_path / "whole" / f"step={step}.ckpt",
    )
    for key in ("state_dict", "optimizer_states"):
        assert_close(resumed[key], whole[key], atol=0, rtol=0)
    assert differing(resumed["lit_generative"]["run"], whole["lit_generative"]["run"]) == []


def test_a_step_that_was_begun_is_forgotten_by_another_run(tmp_path):
    model = Game(accumulate_grad_batches=2)
    fit(model, loader(), tmp_path, max_epochs=-1, max_steps=3)
    assert len(model._waiting) == 1
    fit(model, loader(), tmp_path, max_epochs=-1, max_steps=2)
    assert model.discriminator_steps == 1 and model.images_seen == 8  # batches 1 and 2 of the second run


def test_one_pass_of_the_generator_serves_both(tmp_path):
    passes = []

    class Counting(Game):
        def generate(self, batch):
            passes.append(torch.is_grad_enabled())
            return super().generate(batch)

    fit(Counting(), loader(), tmp_path)
    assert passes == [True] * 6
    passes.clear()
    fit(Counting(n_critic=3), loader(), tmp_path)
    assert passes == [False, False, True] * 2


def test_counters_are_logged(tmp_path):
    run = fit(Game(n_critic=3), loader(), tmp_path, log_every_n_steps=2)
    assert run.logged_metrics["train/generator_steps"] == 2 and run.logged_metrics["train/images_seen"] == 24
    assert run.logged_metrics["train/images_per_second"] > 0
    assert {"train/loss_generator", "train/loss_discriminator"} <= run.logged_metrics.keys()


def test_schedules_have_a_frequency_and_need_no_loss(tmp_path):
    class Slow(Game):
        def configure_optimizers(self):
            optimizers, schedules = super().configure_optimizers()
            return optimizers, [schedules[0] | {"frequency": 3}, schedules[1] | {"frequency": 2}]

    states = States()
    fit(Slow(decay=True), loader(), tmp_path, states, max_epochs=3)
    assert [lr[0] for lr in states.lr] == pytest.approx([0.1 * 0.5 ** (n // 3) for n in range(1, 19)])
    assert [lr[1] for lr in states.lr] == pytest.approx([0.1] * 12 + [0.05] * 6)

    class Plateau(Game):
        def configure_optimizers(self):
            optimizers = super().configure_optimizers()
            return optimizers, [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizers[0])]

    with pytest.raises(ValueError, match="Plateau has no loss to watch: ReduceLROnPlateau cannot be used"):
        fit(Plateau(), loader(), tmp_path)


def scaled(precision):
    """float16 with its scaler, on the CPU, where Lightning has no name for it."""
    if precision != "16-mixed":
        return {"precision": precision}
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))]}


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("cls", [DCGAN, WGAN, WGANGP])
def test_half_precision_trains(cls, precision, tmp_path):
    model = cls(width=4, latent=4, n_critic=2, accumulate_grad_batches=2, clip=0.1, lr=1e-3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    norms = []
    model.clip_gradients, clip = lambda *args: (clip(*args), norms.append(gradient_norm(args[0]))), model.clip_gradients
    fit(model, images(32), tmp_path, **scaled(precision))
    assert all(p.isfinite().all() and not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert len(norms) == 6 and max(norms) <= 0.1 * 1.001  # clipped after the scale was taken out, not before
    assert min(norms) > 1e-4
    assert model.sample(2).dtype == torch.float32


def gradient_norm(optimizer):
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return float(torch.stack([g.norm() for g in grads]).norm())


def test_clipping_of_scaled_gradients_is_refused(tmp_path):
    class Fused(Game):
        def configure_optimizers(self):
            return [torch.optim.Adam(n.parameters(), fused=True) for n in (self.generator, self.discriminator)]

    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(Fused(clip=1.0), loader(), tmp_path, **scaled("16-mixed"))


@pytest.mark.filterwarnings("ignore:Found 1 module")
def test_after_training_a_model_is_seen_in_eval_mode_and_trains_on_in_its_own(tmp_path):
    modes = []

    class Modes(Callback):
        def on_train_batch_start(self, trainer, model, *_):
            modes.append([m.training for m in model.modules()])

    model = DCGAN(width=4, latent=4)
    model.generator.net[2].eval()  # what a user has fixed
    fit(model, images(), tmp_path, Modes())
    assert not any(m.training for m in model.modules())
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    assert torch.isfinite(model.sample(1)).all() and same(dict(model.named_buffers()), buffers)
    fit(model, images(), tmp_path, Modes())
    assert modes[-1] == modes[0] and False in modes[0] and True in modes[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DCGAN", "WGAN", "WGANGP", "FactorVAE"])
def test_every_gan_trains_on_two_processes(name, tmp_path):
    result = trained_on(2, tmp_path, name)
    assert result["global_step"] == 4 and result["spread"] == 0  # the processes hold the same weights


def test_what_a_new_model_forgot_and_what_cpus_cannot_do_is_said(tmp_path):
    class Nameless(Game):
        image_shape = property()  # not set

    with pytest.raises(TypeError, match="Nameless must set image_shape"):
        fit(Nameless(), loader(), tmp_path)
    synchronised = Mock(strategy=Mock(_layer_sync=Mock(), root_device=torch.device("cpu")), datamodule=None)
    model, without = DCGAN(width=4, latent=4), Game()
    model._trainer = without._trainer = synchronised
    with pytest.raises(ValueError, match=r"cannot be synchronised on CPUs: add --trainer\.sync_batchnorm false"):
        model.setup("fit")
    without.setup("fit")  # it has none
