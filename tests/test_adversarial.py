"""The game of two networks: who moves when, and what each leaves alone."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from stubs import trainer
from tiny_game import Game
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from callbacks import EMA
from datamodules import FashionMNIST
from lit_generative.adversarial import frozen
from lit_generative.models.dcgan import DCGAN
from lit_generative.models.wgan import WGAN, WGANGP, distance, gradient_penalty

TESTS = Path(__file__).parent


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


def test_losses_by_hand():
    """Logits 2 x + 1 of x in [-1, 1]; real images are 0.5 (0 in [-1, 1]), fakes 1."""
    model = DCGAN(width=4, latent=4, label_smoothing=0.1)

    class Line(nn.Module):
        def forward(self, x):
            return 2 * x.mean((1, 2, 3)) + 1

    model.discriminator = Line()
    batch, fake = (torch.full((3, 1, 28, 28), 0.5), None), torch.ones(3, 1, 28, 28)
    p_real, p_fake = 1 / (1 + torch.tensor(-1.0).exp()), 1 / (1 + torch.tensor(-3.0).exp())
    losses = model.discriminator_loss(batch, fake)
    expected = -(0.9 * p_real.log() + 0.1 * (1 - p_real).log()) - (1 - p_fake).log()
    assert_close(losses["loss_discriminator"], expected)
    assert_close(model.generator_loss(batch, fake)["loss_generator"], -p_fake.log())
    wgan = WGAN(width=4, latent=4)
    wgan.discriminator = Line()
    assert_close(wgan.discriminator_loss(batch, fake)["loss_critic"], torch.tensor(3.0 - 1.0))
    assert_close(wgan.generator_loss(batch, fake)["loss_generator"], torch.tensor(-3.0))


def test_clipped_weights_stay_within_the_bound(tmp_path):
    states = States()
    fit(WGAN(width=4, latent=4, lr=0.1), images(), tmp_path, states)
    names = [name for name, _ in WGAN(width=4, latent=4).discriminator.named_parameters()]
    assert all(state[name].abs().max() <= 0.01 for state in states.discriminator for name in names)


@pytest.mark.parametrize("half", [False, True])
def test_gradient_penalty_of_a_linear_critic(half):
    x, fake = torch.rand(5, 1, 4, 4), torch.randn(5, 1, 4, 4)
    w = torch.randn(16)

    class Slope(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.w = nn.Parameter(slope * w / w.norm())

        def forward(self, x):
            return x.flatten(1) @ self.w

    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert gradient_penalty(Slope(1.0), x, fake).abs() < 1e-10
        assert_close(gradient_penalty(Slope(3.0), x, fake), torch.tensor(4.0))
        critic = Slope(0.0)
        penalty = gradient_penalty(critic, x, fake)
        penalty.backward()
    assert_close(penalty, torch.tensor(1.0), atol=1e-5, rtol=0) and critic.w.grad.isfinite().all()


def test_the_critic_of_the_penalty_mixes_no_images():
    """A score must not depend on the rest of the batch, as it would with batch norm; also where width is a colour's."""
    for critic in (WGANGP(width=4).discriminator, WGANGP((3, 32, 32), width=3).discriminator):
        x = torch.rand(6, *((1, 28, 28) if critic.net[0].in_channels == 1 else (3, 32, 32)))
        assert_close(critic(x)[:2], critic(x[:2]))
    norms = [m for m in DCGAN((3, 32, 32), width=3).discriminator.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2  # behind all strided convolutions but the first


def test_the_critic_recovers_the_distance_of_two_gaussians():
    """W_1(N(0, 1), N(2, 1)) = 2."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(critic.parameters(), 5e-3, (0.0, 0.9))

    def draw(n):
        x = torch.randn(n, 1, 1, 1) + 2
        return x, torch.randn(n, 1, 1, 1)

    for _ in range(600):
        x, fake = draw(256)
        # the best slope is 1 + W_1 / (2 lambda): a large weight keeps it near 1
        loss = 100 * gradient_penalty(critic, x, fake) - distance(critic, ((x + 1) / 2, None), fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, fake = draw(20_000)
    critic.requires_grad_(False)
    assert float(distance(critic, ((x + 1) / 2, None), fake)) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("n_critic", [1, 2])
def test_accumulation_equals_larger_batches(n_critic, tmp_path):
    """Twice four images a step are eight, the generator's gradients against the same discriminator; 20 = 8 + 8 + 4."""
    models = []
    for size, accumulate in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        models.append(Game(n_critic=n_critic, accumulate=accumulate))
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
    before = {name: value.clone() for name, value in Game().generator.state_dict().items()}

    def moves(states, first):
        return [i + 2 for i, (a, b) in enumerate(pairwise(states), first) if not same(a, b)]

    assert moves(states.generator, 0) == [3, 6, 9, 12] and before
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
    for key in ("state_dict", "optimizer_states", "ema", "rng_state", "adversarial_steps"):
        assert_close(halves[key], whole[key], atol=0, rtol=0)


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_half_precision_trains(precision, tmp_path):
    model = DCGAN(width=4, latent=4)
    fit(model, images(), tmp_path, precision=precision)
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.sample(2).dtype == torch.float32


@pytest.mark.parametrize(
    "flag, value, own", [("gradient_clip_val", 0.5, "clip 0.5"), ("accumulate_grad_batches", 4, "accumulate 4")]
)
def test_flags_of_the_trainer_point_to_the_models_own(flag, value, own, tmp_path):
    with pytest.raises(MisconfigurationException, match=f"Game optimises two networks .* --model.{own}"):
        fit(Game(), loader(), tmp_path, **{flag: value})


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True, "static_graph": True}])
def test_strategies_that_would_fail_are_refused_with_the_remedy(options):
    model = Game()
    model._trainer = Mock(strategy=DDPStrategy(**options), datamodule=None)
    with pytest.raises(ValueError, match=r"set --trainer.strategy ddp_find_unused_parameters_true"):
        model.setup("fit")


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    def weights(processes):
        environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, TESTS / "tiny_game.py", str(processes), tmp_path / f"{processes}.pt"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=environment)
        assert run.returncode == 0, run.stderr[-3000:]
        return torch.load(tmp_path / f"{processes}.pt", weights_only=True)

    one, two = weights(1), weights(2)
    assert one["global_step"] == two["global_step"] == 12
    assert_close(two["weights"], one["weights"], atol=1e-6, rtol=1e-5)
