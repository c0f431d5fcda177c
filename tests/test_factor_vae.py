"""FactorVAE: permuted latents, the two losses against known ratios, and who moves whom."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.distributions import Normal
from torch.testing import assert_close

from datamodules import FashionMNIST
from lit_generative.models.factor_vae import FactorVAE, permute_dims
from lit_generative.models.vae import VAE


def correlated(n, rho=0.8):
    """(z_1, z_2) of a Gaussian with unit variances and correlation rho."""
    z = torch.randn(n, 2)
    return torch.stack([z[:, 0], rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]], 1)


def model(**options):
    torch.manual_seed(0)
    return FactorVAE(image_shape=(1, 4, 4), latent=2, hidden=(8,), units=16, layers=2, **options)


def test_permuted_latents_keep_their_marginals_and_lose_their_correlation():
    z = correlated(20_000)
    permuted = permute_dims(z)
    assert torch.equal(permuted.sort(0).values, z.sort(0).values)  # the same numbers in every dimension
    assert torch.corrcoef(z.T)[0, 1] > 0.79 and abs(torch.corrcoef(permuted.T)[0, 1]) < 0.03
    rows = {tuple(row) for row in z.tolist()}
    assert sum(tuple(row) in rows for row in permuted.tolist()) < 20  # not rows, but dimensions, were moved


class Ratio(nn.Module):
    """log q(z) / prod q(z_j) of `correlated`: the best discriminator."""

    def __init__(self, rho):
        super().__init__()
        self.rho = rho

    def forward(self, z):
        (a, b), r = z.T, self.rho
        joint = -(a**2 - 2 * r * a * b + b**2) / (2 * (1 - r**2)) - math.log(math.sqrt(1 - r**2))
        return (joint + (a**2 + b**2) / 2)[:, None]


def test_with_the_best_discriminator_the_penalty_is_the_total_correlation():
    """KL of a Gaussian with correlation rho from the product of its margins: -log(1 - rho^2) / 2."""
    vae, z = model(gamma=3.0), correlated(400_000)
    vae.discriminator = Ratio(0.8)
    vae.p = lambda z, c=None: type("P", (), {"log_prob": staticmethod(lambda x: torch.zeros(len(x)))})()
    fake = torch.stack([torch.zeros_like(z), torch.ones_like(z), z])
    losses = vae.generator_loss((z, z), fake)
    assert_close(losses["tc"], torch.tensor(-0.5 * math.log(1 - 0.8**2)), atol=0.01, rtol=0)
    assert_close(losses["loss"], 3 * losses["tc"])  # the KL of N(0, I) is 0


def test_the_discriminators_loss_is_least_for_the_true_ratio():
    vae, z = model(), correlated(100_000)
    fake = torch.stack([z, z, z])
    loss = {}
    for rho in (0.5, 0.8, 0.9):
        vae.discriminator = Ratio(rho)
        torch.manual_seed(1)
        loss[rho] = float(vae.discriminator_loss((z, z), fake)["loss_discriminator"])
    assert loss[0.8] < min(loss[0.5], loss[0.9]) and loss[0.8] < math.log(2)
    vae.discriminator = nn.Sequential(nn.Linear(2, 1), nn.Threshold(math.inf, 0.0))  # knows nothing
    assert_close(vae.discriminator_loss((z, z), fake)["loss_discriminator"], torch.tensor(math.log(2)))


def test_without_gamma_the_loss_is_the_vaes():
    game = model(gamma=0.0)
    torch.manual_seed(0)
    vae = VAE((1, 4, 4), latent=2, hidden=(8,))
    vae.load_state_dict({k: v for k, v in game.state_dict().items() if not k.startswith("discriminator")})
    x = torch.rand(6, 1, 4, 4).mul(255).round().div(255)
    torch.manual_seed(1)
    expected = vae.objective(x)
    torch.manual_seed(1)
    losses = game.generator_loss((x, x), game.generate((x, x)))
    for name in ("loss", "elbo", "kl", "reconstruction"):
        assert_close(losses[name], expected[name].mean())


def test_each_network_moves_by_its_own_loss_alone():
    game, x = model(), torch.rand(6, 1, 4, 4).mul(255).round().div(255)
    fake = game.generate((x, x))
    game.discriminator_loss((x, x), fake.detach())["loss_discriminator"].backward()
    assert all(p.grad is None for p in game.generator.parameters())
    assert all(p.grad is not None for p in game.discriminator.parameters())


def test_the_whole_batch_is_compared_with_itself_permuted():
    game, seen = model(), []
    game.log_ratio = lambda z: seen.append(z) or z[:, 0]
    z = torch.arange(14.0).view(7, 2)
    game.discriminator_loss((z, z), torch.stack([z, z, z]))
    ((joint, product),) = (part.chunk(2) for part in seen)
    assert torch.equal(joint, z) and torch.equal(product.sort(0).values, z) and not torch.equal(product, z)


def test_it_trains_keeps_the_bound_and_reports_both(data_dir, tmp_path):
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
    trainer = Trainer(
        max_epochs=1, limit_train_batches=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    game = FactorVAE(hidden=(8,), latent=2, units=8, layers=1, lr_decay_start=0.0)
    trainer.fit(game, datamodule=data)
    metrics = trainer.logged_metrics
    assert trainer.global_step == game.discriminator_steps == game.generator_steps == 3
    assert {"train/loss", "train/tc", "train/loss_discriminator", "val/elbo", "val/kl"} <= set(metrics)
    assert_close(metrics["val/loss"], -metrics["val/elbo"])
    assert 0 <= metrics["val/discriminator_accuracy"] <= 1 and abs(metrics["val/tc"]) < 1
    assert all(optimizer.param_groups[0]["lr"] < 1e-9 for optimizer in trainer.optimizers)  # both have decayed


def test_validation_and_test_say_what_the_discriminator_sees():
    """With the best discriminator ``tc`` is the total correlation of q(z), its accuracy that of the best guess."""
    vae, z = model(), correlated(100_000)
    vae.discriminator = Ratio(0.8)
    vae.q = lambda x, c=None: Normal(x.flatten(1), 1e-6)  # draws are the means
    vae.p = lambda z, c=None: type("P", (), {"log_prob": staticmethod(lambda x: torch.zeros(len(x)))})()
    found = [vae.evaluate(part.view(-1, 1, 1, 2), None, "val") for part in z.split(999)]
    tc, right = (torch.cat([values[name] for values in found]).mean() for name in ("tc", "discriminator_accuracy"))
    assert_close(tc, torch.tensor(-0.5 * math.log(1 - 0.8**2)), atol=0.01, rtol=0)
    # 1/2 + half the total variation between q(z) and the product of its margins, over a grid
    grid = torch.cartesian_prod(*[torch.linspace(-6, 6, 601)] * 2)
    ratio, product = Ratio(0.8)(grid).squeeze(1).double().exp(), Normal(0.0, 1.0).log_prob(grid).sum(1).double().exp()
    best = 0.5 + 0.25 * float(((ratio - 1).abs() * product).sum()) * 0.02**2
    assert_close(float(right), best, atol=0.005, rtol=0)


def test_wrong_arguments_are_refused(data_dir):
    with pytest.raises(ValueError, match="gamma must be >= 0"):
        model(gamma=-1.0)
    data = FashionMNIST(data_dir=str(data_dir), batch_size=1, val_size=16)
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"FactorVAE .* needs 2 images or more in a batch, got 1"):
        trainer.fit(FactorVAE(hidden=(8,)), datamodule=data)


def test_averages_are_kept_of_encoder_and_decoder(data_dir, tmp_path):
    from callbacks import EMA
    from lit_generative.checkpoints.load import load_model

    def fit(networks):
        data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
        trainer = Trainer(
            max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[EMA(networks)], limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(FactorVAE(hidden=(8,), latent=2, units=8, layers=1), datamodule=data)
        trainer.save_checkpoint(tmp_path / "a.ckpt")

    fit(("encoder", "decoder"))
    load_model(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"no network generator; choose from encoder, decoder, discriminator$"):
        fit(("generator",))


def test_the_discriminator_learns_as_in_the_paper():
    game = model()
    vae, critic = game.default_optimizers()
    assert critic.param_groups[0]["betas"] == (0.5, 0.9) and critic.param_groups[0]["lr"] == 1e-4
    assert {id(p) for p in vae.param_groups[0]["params"]} == {id(p) for p in game.generator.parameters()}
    assert game.log_ratio(torch.randn(5, 2)).shape == (5,)
    kinds = [type(layer) for layer in game.discriminator]
    assert kinds == [nn.Linear, nn.LeakyReLU] * 2 + [nn.Linear]
