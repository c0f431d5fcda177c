"""Gradient estimators against closed forms, autograd and their analytic variances."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lit_generative.errors import UserError
from lit_generative.models.gradient_estimators import (
    EstimatedVAE,
    bernoulli_score_function,
    measure_valued,
    pathwise,
    score_function,
)
from lit_generative.models.vae import VAE

ESTIMATORS = {
    "pathwise": pathwise,
    "score_function": score_function,
    "score_function, control variate": partial(score_function, control_variate=True),
    "measure_valued": measure_valued,
    "measure_valued, independent": partial(measure_valued, coupled=False),
}
MU, SIGMA = 0.7, 0.8


def density(x):
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


# f of one number, and the derivatives of its mean by mu and by sigma
FUNCTIONS = {
    "linear": (lambda z: z, 1.0, 0.0),
    "square": (lambda z: z.square(), 2 * MU, 2 * SIGMA),
    "step": (lambda z: (z > 0.5).to(z), density((0.5 - MU) / SIGMA) / SIGMA,
             density((0.5 - MU) / SIGMA) * (0.5 - MU) / SIGMA**2),
    "oscillating": (lambda z: (5 * z).sin(), 5 * math.exp(-12.5 * SIGMA**2) * math.cos(5 * MU),
                    -25 * SIGMA * math.exp(-12.5 * SIGMA**2) * math.sin(5 * MU)),
}  # fmt: skip


def estimates(estimator, f, n, repetitions=4000):
    """Independent estimates by mu and by sigma, each ``(repetitions,)``."""
    mean = torch.full((repetitions, 1), MU, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    return [g[:, 0] for g in estimator(lambda z: f(z[..., 0]), mean, mean / MU * SIGMA, n, generator)]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_estimates_are_unbiased_and_their_variance_falls_as_one_over_n(name, function):
    if name == "pathwise" and function == "step":
        pytest.skip("a step has no derivative to learn from")
    f, *exact = FUNCTIONS[function]
    few, many = (estimates(ESTIMATORS[name], f, n) for n in (8, 64))
    for a, b, eta in zip(few, many, exact, strict=True):
        for found in (a, b):
            error = max(float(found.std()) / math.sqrt(len(found)), 1e-12)
            assert abs(float(found.mean()) - eta) < 4 * error
        if a.var() > 1e-20:
            slope = math.log(float(b.var() / a.var())) / math.log(64 / 8)
            # a control variate of few draws is itself uncertain
            assert slope == pytest.approx(-1, abs=0.2 if "control" in name else 0.1)


def test_variances_are_the_analytic_ones():
    mu, sigma = MU, SIGMA
    expected = {
        ("linear", score_function): mu**2 / sigma**2 + 2,
        ("square", score_function): mu**4 / sigma**2 + 14 * mu**2 + 15 * sigma**2,
        ("square", pathwise): 4 * sigma**2,
        ("linear", measure_valued): (4 - math.pi) / math.pi,
        ("square", measure_valued): 4 * mu**2 * (4 - math.pi) / math.pi,
    }
    for (function, estimator), variance in expected.items():
        found = estimates(estimator, FUNCTIONS[function][0], 1, repetitions=100_000)[0]
        assert float(found.var()) == pytest.approx(variance, rel=0.04), (function, estimator)
    assert estimates(pathwise, FUNCTIONS["linear"][0], 1)[0].var() == 0


def test_what_coupling_does_to_the_variance():
    independent = partial(measure_valued, coupled=False)
    for function, by_mean in (("linear", 2), ("square", None)):
        f = FUNCTIONS[function][0]
        (a, c), (b, d) = estimates(measure_valued, f, 1, 50_000), estimates(independent, f, 1, 50_000)
        assert c.var() < d.var()
        assert float(a.var() / b.var()) == pytest.approx(by_mean, rel=0.05) if by_mean else a.var() < b.var()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_many_dimensions_and_any_batch(name):
    """A quadratic form of correlated numbers, whose gradients are known."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    mean = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator)
    scale = torch.rand(2, 2, 3, dtype=torch.float64, generator=generator) + 0.5
    found = [
        torch.stack(ESTIMATORS[name](lambda z: ((z @ a) * z).sum(-1), mean, scale, 200, generator)) for _ in range(100)
    ]
    exact = torch.stack([mean @ (a + a.T), 2 * a.diagonal() * scale])
    error = torch.stack(found).std(0) / 10
    assert ((torch.stack(found).mean(0) - exact).abs() < 4.5 * error).all()


def test_bernoulli_gradients_against_enumeration():
    logits = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    f = lambda z: (z @ z.new_tensor([2.0, -1.0])).exp()  # noqa: E731
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    p = (points * logits.sigmoid() + (1 - points) * (1 - logits.sigmoid())).prod(-1)
    (exact,) = torch.autograd.grad((p * f(points)).sum(), logits)
    generator = torch.Generator().manual_seed(0)
    found = bernoulli_score_function(f, logits.detach().expand(20_000, 2), 4, generator)
    assert ((found.mean(0) - exact).abs() < 4 * found.std(0) / math.sqrt(20_000)).all()


def test_a_control_variate_needs_another_draw():
    one = torch.ones(1)
    with pytest.raises(UserError, match="n must be >= 2, got 1"):
        score_function(lambda z: z[..., 0], one, one, 1, control_variate=True)
    with pytest.raises(UserError, match="n must be >= 2, got 1"):
        bernoulli_score_function(lambda z: z[..., 0], one, 1)
    with pytest.raises(UserError, match="draws must be >= 1"):
        EstimatedVAE(draws=0)


def gradients(model, x, seed=0):
    torch.manual_seed(seed)
    model.zero_grad()
    loss = model.objective(x)["loss"].mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def vaes(**options):
    models = []
    for cls, own in ((VAE, {}), (EstimatedVAE, options)):
        torch.manual_seed(0)
        models.append(cls(image_shape=(1, 4, 4), latent=2, hidden=(8,), likelihood="bernoulli", **own))
    return [model.double() for model in models], (torch.rand(3, 1, 4, 4, dtype=torch.float64) > 0.5).double()


def test_the_pathwise_vae_is_the_vae_to_the_bit():
    (vae, estimated), x = vaes()
    (a, expected), (b, found) = gradients(vae, x), gradients(estimated, x)
    assert torch.equal(a, b) and all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("gradient", ["pathwise", "score_function", "measure_valued"])
def test_every_estimator_gives_the_gradients_of_the_vae_on_average(gradient):
    (vae, estimated), x = vaes(gradient=gradient, draws=50)
    x = x.repeat(20, 1, 1, 1)  # many draws of the same images
    rounds = 40
    expected = [gradients(vae, x, i)[1] for i in range(rounds)]
    found = [gradients(estimated, x, rounds + i)[1] for i in range(rounds)]
    for name in expected[0]:
        a, b = (torch.stack([grads[name] for grads in side]) for side in (expected, found))
        error = ((a.var(0) + b.var(0)) / rounds).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * error + 1e-12).all(), name


def test_the_value_of_the_loss_is_that_of_its_draws():
    (_, estimated), x = vaes(gradient="measure_valued", draws=2000)
    torch.manual_seed(0)
    terms = estimated.objective(x)
    assert terms["loss"].shape == (3,)
    torch.manual_seed(1)
    with torch.no_grad():
        mean = -estimated.log_likelihood(x, estimated.q(x).sample((20_000,))).mean(0)
    assert_close(terms["reconstruction"].detach(), mean, rtol=0.01, atol=0)


def test_the_variance_of_gradients_is_that_of_repeated_estimates():
    (_, estimated), x = vaes(gradient="score_function")
    q = estimated.q(x)
    repeated = torch.stack([torch.cat(estimated.estimate(x, q), -1) for _ in range(4000)])
    with torch.inference_mode():
        logged = torch.stack([estimated.evaluate(x, None, "val")["gradient_variance"] for _ in range(4000)])
    assert_close(logged.mean(0), repeated.var(0).sum(-1), rtol=0.15, atol=0)
