"""The VAE's bounds against a model whose p(x) is known, and its terms against independent routes."""

from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback
from stubs import trainer
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lit_generative.likelihoods import log_mean_exp
from lit_generative.models.beta_vae import BetaVAE
from lit_generative.models.iwae import IWAE
from lit_generative.models.vae import VAE

LATENT, DIMS, NOISE = 3, 6, 0.7


class LinearGaussian(VAE):
    """x = W z + b + noise: log p(x) = log N(x; b, W W^T + noise^2 I), and the posterior is Gaussian too."""

    def __init__(self, perturbation: float) -> None:
        super().__init__((1, 2, 3), LATENT, hidden=(4,), likelihood="bernoulli")
        torch.manual_seed(0)
        self.W, self.b = torch.randn(DIMS, LATENT).double(), torch.randn(DIMS).double()
        precision = torch.eye(LATENT).double() + self.W.T @ self.W / NOISE**2
        self.gain = precision.inverse() @ self.W.T / NOISE**2
        self.W_scale = precision.inverse().diagonal().sqrt()
        self.perturbation = perturbation

    def q(self, x, c=None):
        mu = (x.flatten(1) - self.b) @ self.gain.T
        return Normal(mu + self.perturbation, (self.W_scale * (1 + self.perturbation)).expand_as(mu))

    def p(self, z, c=None):
        return PixelNormal((z @ self.W.T + self.b).unflatten(-1, (1, 2, 3)))

    def exact(self, x):
        covariance = self.W @ self.W.T + NOISE**2 * torch.eye(DIMS).double()
        return MultivariateNormal(self.b, covariance).log_prob(x.flatten(1))


class PixelNormal:
    def __init__(self, mean):
        self.mean = mean

    def log_prob(self, x):
        return Normal(self.mean, NOISE).log_prob(x).sum((-3, -2, -1))


def images(n=1):
    return torch.randn(n, 1, 2, 3, generator=torch.Generator().manual_seed(1)).double()


def test_bounds_are_ordered_and_below_log_p():
    model, x = LinearGaussian(0.3), images()
    torch.manual_seed(2)
    log_w = model.chunked_log_weights(x.expand(4000, -1, -1, -1), 50)
    elbo, iwae_5, iwae_50 = (log_mean_exp(log_w[:k], 0).mean() for k in (1, 5, 50))
    assert elbo < iwae_5 - 0.02 < iwae_50 - 0.03 < model.exact(x)[0] - 0.03


def test_elbo_equals_its_closed_form():
    """ELBO = log p(x) - KL(q || p(z|x)), with both distributions Gaussian."""
    model, x = LinearGaussian(0.3), images()
    torch.manual_seed(2)
    terms = model.objective(x.expand(200_000, -1, -1, -1))
    covariance = (torch.eye(LATENT).double() + model.W.T @ model.W / NOISE**2).inverse()
    posterior = MultivariateNormal((x.flatten(1) - model.b) @ model.gain.T, covariance)
    q = model.q(x)
    gap = kl_divergence(MultivariateNormal(q.loc, torch.diag_embed(q.scale.square())), posterior)
    assert_close(terms["elbo"].mean(), (model.exact(x) - gap)[0], atol=0.01, rtol=0)


def test_bound_converges_to_log_p():
    model, x = LinearGaussian(0.3), images(4)
    torch.manual_seed(2)
    assert_close(model.log_prob(x, k=200_000), model.exact(x), atol=0.01, rtol=0)


def test_kl_matches_torch_and_monte_carlo():
    torch.manual_seed(0)
    model = VAE((1, 4, 4), latent=5, hidden=(8,))
    q = Normal(torch.randn(2, 5).double(), torch.rand(2, 5).double() + 0.2)
    prior = Normal(torch.zeros(5).double(), 1.0)
    assert_close(model.kl(q), kl_divergence(q, prior))
    z = q.sample((400_000,))
    assert_close((q.log_prob(z) - prior.log_prob(z)).mean(0), model.kl(q), atol=0.02, rtol=0)


def test_elbo_is_minus_reconstruction_minus_kl_and_equals_the_mean_log_weight():
    torch.manual_seed(0)
    model = VAE((1, 4, 4), latent=2, hidden=(8,)).double()
    x = torch.rand(1, 1, 4, 4).mul(255).round().div(255).double().expand(100_000, -1, -1, -1)
    terms = model.objective(x)
    assert_close(terms["elbo"], -(terms["reconstruction"] + terms["kl"]))
    assert_close(terms["loss"], -terms["elbo"])
    log_w = model.log_weights(x, model.q(x), 1)[0]
    assert_close(log_w.mean(), terms["elbo"].mean(), atol=0.03, rtol=0)


def test_k_is_honoured_exactly_in_chunks():
    model, x = VAE((1, 4, 4), latent=2, hidden=(8,)), torch.zeros(5, 1, 4, 4)
    model.pixels_at_once = 3 * 5 * 16  # three draws at a time
    draws, log_weights = [], model.log_weights
    model.log_weights = lambda x, q, k, c=None: draws.append(k) or log_weights(x, q, k)
    assert model.chunked_log_weights(x, 7).shape == (7, 5)
    assert draws == [3, 3, 1]


def test_iwae_loss_is_the_bound_and_its_gradient_that_of_equation_14():
    torch.manual_seed(0)
    model = IWAE(image_shape=(1, 4, 4), latent=2, hidden=(8,), k=6).double()
    x = torch.rand(3, 1, 4, 4).round().double()
    torch.manual_seed(1)
    loss = model.objective(x)["loss"]
    gradient = torch.autograd.grad(loss.mean(), list(model.parameters()))
    torch.manual_seed(1)
    log_w = model.log_weights(x, model.q(x), 6)
    assert_close(loss, -log_w.exp().mean(0).log())
    surrogate = -(log_w.softmax(0).detach() * log_w).sum(0).mean()
    for a, b in zip(gradient, torch.autograd.grad(surrogate, list(model.parameters())), strict=True):
        assert_close(a, b)


def test_iwae_reports_the_elbo_of_the_vae_in_evaluation():
    torch.manual_seed(0)
    model, x = IWAE(image_shape=(1, 4, 4), latent=2, hidden=(8,)), torch.ones(2, 1, 4, 4)
    torch.manual_seed(3)
    found = model.evaluate(x, None, "val")["elbo"]
    torch.manual_seed(3)
    assert_close(found, VAE.objective(model, x)["elbo"])


def test_kl_warmup_rises_to_one_and_leaves_the_elbo_alone(monkeypatch):
    model, x = VAE((1, 4, 4), latent=2, hidden=(8,), kl_warmup=9), torch.zeros(2, 1, 4, 4)
    weights = []
    for step in (0, 4, 9, 100):
        monkeypatch.setattr(VAE, "global_step", step)
        weights.append(model.kl_weight)
        terms = model.objective(x)
        assert_close(terms["loss"], terms["reconstruction"] + model.kl_weight * terms["kl"])
        assert_close(terms["elbo"], -(terms["reconstruction"] + terms["kl"]))
    assert weights == pytest.approx([0.1, 0.5, 1, 1])


def test_free_bits_stop_the_gradient_of_dimensions_below_them():
    model = VAE((1, 4, 4), latent=2, hidden=(8,), free_bits=0.5)
    kl = torch.tensor([[0.1, 1.0], [0.3, 2.0]], requires_grad=True)
    penalty = model.penalised(kl)
    assert_close(penalty, torch.tensor([2.0, 2.0]))  # max(0.2, 0.5) + 1.5
    penalty.mean().backward()
    assert_close(kl.grad, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="latent, hidden and test_k must be >= 1"):
        VAE(latent=0)
    with pytest.raises(ValueError, match="k must be >= 1"):
        IWAE(k=0)


def test_the_reported_bounds_are_those_of_k_draws(monkeypatch):
    """`test` on the linear-Gaussian model: each IWAE-k near its value from many draws, and the active dimensions."""
    model, x = LinearGaussian(0.3), images(4)
    model.test_k, logged = [1, 5, 50], {}
    monkeypatch.setattr(model, "log_dict", lambda metrics, **_: logged.update(metrics))
    monkeypatch.setattr(type(model), "trainer", Mock(world_size=1, validating=False))
    model.test_step((x.repeat(4000, 1, 1, 1), None), 0)
    model.on_test_epoch_end()
    torch.manual_seed(5)
    log_w = model.chunked_log_weights(x.repeat(4000, 1, 1, 1), 50)
    for k in model.test_k:
        expected = log_mean_exp(log_w[:k], 0).mean().item()
        assert float(logged[f"test/iwae_{k}"]) == pytest.approx(expected, abs=0.06)
    assert logged["test/iwae_1"] < logged["test/iwae_5"] < logged["test/iwae_50"]
    assert logged["test/active_units"] == (model.encode(x).var(0) > 0.01).sum()
    assert torch.equal(model.encode(x), model.q(x).loc)
    assert "16,000 images" in model.describe_test()


def test_the_learning_rate_falls_to_zero_over_the_last_part(tmp_path):
    class Rates(Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates, model = [], VAE((1, 4, 4), latent=2, hidden=(8,), lr=0.1, lr_decay_start=0.5)
    x = DataLoader(TensorDataset(torch.randint(256, (10, 1, 4, 4)) / 255, torch.zeros(10)), 2)
    fit = trainer(tmp_path, max_epochs=2, logger=False, callbacks=[Rates()], limit_val_batches=0)
    fit.fit(model, x, x)
    assert rates == pytest.approx([0.1] * 6 + [0.08, 0.06, 0.04, 0.02])
    assert fit.optimizers[0].param_groups[0]["lr"] == 0


@pytest.mark.parametrize("cls", [VAE, BetaVAE])
def test_free_bits_of_two_processes_are_those_of_the_doubled_batch(cls):
    """The mean of their losses and of their gradients, as DDP takes it; the means per process lie on both sides."""
    halves = torch.tensor([[0.1, 0.9, 0.2], [0.1, 0.1, 0.6], [0.8, 1.0, 0.3], [0.8, 0.3, 0.2]], dtype=torch.float64)
    model = cls(image_shape=(1, 4, 4), latent=3, hidden=(8,), free_bits=0.44)  # of the means .45, .575 and .325
    whole = halves.clone().requires_grad_()
    expected = model.penalised(whole).mean()
    (gradient,) = torch.autograd.grad(expected, whole)
    assert (gradient != 0).any(0).tolist() == [True, True, False]
    model._trainer = Mock(world_size=2, training=True)
    model._trainer.strategy.reduce = lambda mean, reduce_op: halves.mean(0) if reduce_op == "mean" else None
    losses, gradients = [], []
    for half in halves.split(2):
        half = half.clone().requires_grad_()
        losses.append(model.penalised(half).mean())
        gradients += torch.autograd.grad(losses[-1], half)
    torch.testing.assert_close(sum(losses) / 2, expected)
    torch.testing.assert_close(torch.cat(gradients) / 2, gradient)
    model._trainer = Mock(world_size=2, training=False)  # in validation, processes may have other numbers of batches
    model.penalised(halves)
    assert not model._trainer.strategy.reduce.called


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 27, 20)])
def test_convolutional_networks_mirror_each_other_at_any_size(shape):
    model = VAE(shape, latent=3, network="conv", hidden=(4, 8, 8))
    assert any(isinstance(module, torch.nn.Conv2d) for module in model.encoder.modules())
    x = torch.rand(2, *shape)
    assert model.q(x).loc.shape == (2, 3) and model.decode(torch.zeros(5, 3)).shape == (5, *shape)


@pytest.mark.parametrize("wrong", [{"test_k": ()}, {"kl_warmup": -1}, {"free_bits": -1.0}, {"lr_decay_start": 1.5}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        VAE(**wrong)
