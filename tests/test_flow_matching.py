"""Flow matching: exact velocities have exact samples and likelihoods; solvers; DDPM's probability flow."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from stubs import trainer
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from datamodules import FashionMNIST
from lit_generative.diffusion.ode import probes_of, solve, solve_with_density
from lit_generative.diffusion.samplers import ddim
from lit_generative.errors import UserError
from lit_generative.models.ddpm import DDPM
from lit_generative.models.flow_matching import FlowMatching, Straight, nearest

TINY = {"channels": (8, 8), "groups": 4}
SHAPE = (1, 1, 2)
MEANS, SCALE = torch.tensor([[[[-0.7, 0.2]]], [[[0.5, -0.4]]]], dtype=torch.float64), 0.15
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)


def gaussian():
    return MixtureSameFamily(Categorical(WEIGHTS[:1]), Independent(Normal(MEANS[:1], SCALE), 3))


def mixture():
    return MixtureSameFamily(Categorical(WEIGHTS), Independent(Normal(MEANS, SCALE), 3))


def estimate_of(p, x_t, alpha, sigma):
    """E[x_0|x_t] of a mixture of Gaussians."""
    means, scale = p.component_distribution.base_dist.loc, p.component_distribution.base_dist.scale
    variance = (alpha * scale).square() + sigma**2  # (K, C, H, W)
    log_w = (
        p.mixture_distribution.logits
        - ((x_t[:, None] - alpha * means).square() / variance + variance.log()).flatten(2).sum(2) / 2
    )
    each = means + alpha * scale.square() / variance * (x_t[:, None] - alpha * means)
    return (log_w.softmax(1)[..., None, None, None] * each).sum(1)


def log_p(model, x, *labels):
    """Of data in [-1, 1]."""
    return model.log_density((x + 1) / 2, *labels) - x[0].numel() * math.log(2)


class ExactFlow(FlowMatching):
    def __init__(self, p, **options):
        super().__init__(**(TINY | {"image_shape": SHAPE, "ode_probes": 0} | options))
        self.p = p

    def predict(self, x_t, t, c=None):
        t = t.view(-1, 1, 1, 1)
        if float(t[0]) == 1:
            x_0 = (self.p.mixture_distribution.probs[:, None, None, None] * self.p.component_distribution.mean).sum(0)
            return x_t - x_0
        if float(t[0]) == 0:  # E[x_1|x_0] = 0
            return -x_t
        x_0 = estimate_of(self.p, x_t, 1 - float(t[0]), float(t[0]))
        return (x_t - (1 - t) * x_0) / t - x_0


class ExactDDPM(DDPM):
    def __init__(self, p, **options):
        super().__init__(**(TINY | {"image_shape": SHAPE, "ode_probes": 0, "likelihood": "ode"} | options))
        self.p = p
        log_snr = [2 * math.log(a / s) for a, s in map(self.schedule, range(1, self.steps + 1))]
        self.log_snr = np.array(log_snr)

    def predict(self, x_t, t, c=None):
        snr = math.exp(np.interp(float(t[0]), np.arange(1, self.steps + 1), self.log_snr))
        alpha, sigma = math.sqrt(snr / (1 + snr)), math.sqrt(1 / (1 + snr))
        x_0 = estimate_of(self.p, x_t, alpha, sigma)
        eps = (x_t - alpha * x_0) / sigma
        return {"x_0": x_0, "eps": eps, "v": alpha * eps - sigma * x_0}[self.parameterization]


@pytest.mark.parametrize("make", [gaussian, mixture])
@pytest.mark.parametrize(("method", "steps"), [("heun", 2000), ("rk4", 200), ("dopri5", 1)])
def test_the_likelihood_of_an_exact_velocity_is_that_of_the_data(make, method, steps):
    p = make()
    x = p.sample((6,))
    model = ExactFlow(p, ode_method=method, ode_steps=steps)
    assert_close(log_p(model, x), p.log_prob(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [gaussian, mixture])
@pytest.mark.parametrize(
    "options", [{"sampler": "euler", "sampling_steps": 400}, {"sampling_steps": 100}, {"sampler": "dopri5"}]
)
def test_samples_of_an_exact_velocity_are_the_data(make, options):
    torch.manual_seed(0)
    p = make()
    model = ExactFlow(p, **options)
    model.to_images = lambda x: x
    x = model.generate(torch.randn(4000, *SHAPE, dtype=torch.float64))
    true = p.sample((4000,))
    for moment in (lambda x: x, lambda x: x.square(), lambda x: x.prod(-1)):
        a, b = moment(x), moment(true)
        error = ((a.var(0) + b.var(0)) / 4000).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error).all()


@pytest.mark.parametrize("parameterization", ["eps", "x_0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_probability_flow_of_an_exact_ddpm_has_the_likelihood_of_the_data(parameterization, schedule):
    p = gaussian()
    model = ExactDDPM(p, parameterization=parameterization, schedule=schedule, ode_steps=200)
    x = p.sample((6,))
    first, last = model.schedule.ratio(1), min(model.schedule.ratio(1000), 80)
    stretch = math.sqrt((SCALE**2 + last**2) / (SCALE**2 + first**2))  # of the flow, which is affine
    end = (MEANS[:1] + stretch * (x - MEANS[:1])) / math.hypot(1, last)
    prior = Independent(Normal(torch.zeros(SHAPE), 1.0), 3)
    expected = prior.log_prob(end) + 2 * math.log(stretch / math.hypot(1, last))
    assert_close(log_p(model, x), expected, rtol=0, atol=1e-4)
    assert_close(expected, p.log_prob(x), rtol=0, atol=0.05)  # which differs by the noise at the first and last time


@pytest.mark.parametrize("exact", [ExactFlow, ExactDDPM])
def test_an_images_likelihood_is_that_of_the_density_in_its_bin(exact):
    model = exact(gaussian(), ode_steps=400)
    x = torch.tensor([[[[60, 140]]]]).double() / 255
    torch.manual_seed(0)
    found = model.log_prob(x.expand(400, -1, -1, -1)).mean()
    edges = 2 * torch.tensor([[60, 140], [61, 141]], dtype=torch.float64) / 256 - 1
    scale = math.hypot(SCALE, model.schedule.ratio(1) if exact is ExactDDPM else 0)
    cdf = Normal(MEANS[0].flatten(), scale).cdf(edges)
    assert float(found) == pytest.approx(float((cdf[1] - cdf[0]).log().sum()), abs=0.02)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_errors_fall_as_the_order_says(method, order):
    def end(steps):
        x = torch.ones(1, 1, dtype=torch.float64)
        return float(solve(lambda t, x: x * math.cos(t), x, [2 * i / steps for i in range(steps + 1)], method))

    errors = [abs(end(steps) - math.exp(math.sin(2))) for steps in (40, 80)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_dopri5_keeps_to_its_tolerance():
    for tolerance in (1e-3, 1e-6):
        x = torch.ones(1, 1, dtype=torch.float64)
        end = float(solve(lambda t, x: x * math.cos(t), x, [0, 2], "dopri5", tolerance))
        assert 0 < abs(end - math.exp(math.sin(2))) < 10 * tolerance


def test_estimates_of_the_trace_are_unbiased():
    torch.manual_seed(0)
    matrix = torch.randn(6, 6, dtype=torch.float64)
    x = torch.randn(4000, 6, dtype=torch.float64)
    for n, tolerance in ((0, 1e-9), (3, None)):
        change = solve_with_density(lambda t, x: x @ matrix.T, x, [0, 0.5], probes_of(x, n))[1]
        error = tolerance or 4 * float(change.std()) / math.sqrt(4000)
        assert abs(float(change.mean() - matrix.trace() / 2)) < error
        assert (change.std() < 1e-9) == (n == 0)


def net(**options):
    torch.manual_seed(0)
    model = FlowMatching(**(TINY | {"image_shape": (1, 4, 4), "ode_probes": 0} | options))
    for p in model.parameters():
        p.data += 0.03 * torch.randn_like(p)
    return model.eval()


def test_forward_and_backward_return_the_image():
    model = net(ode_steps=60)
    x = torch.randint(0, 256, (5, 1, 4, 4)) / 255
    z = model.encode(x)
    assert (z - (2 * x - 1)).abs().max() > 0.05
    assert_close(model.decode(z), x)


def test_the_likelihood_does_not_depend_on_the_batch_nor_on_modes():
    model = net(classes=3, ode_steps=2).double()
    x, c = torch.rand(5, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    together = model.log_density(x, c)
    assert_close(torch.cat([model.log_density(x[i : i + 1], c[i : i + 1]) for i in range(5)]), together)
    with torch.inference_mode():
        images, labels = torch.rand(5, 1, 4, 4, dtype=torch.float64), c + 0
        assert model.log_prob(images, labels).isfinite().all()
    assert not torch.allclose(model.log_density(x, c * 0), together)


def test_euler_is_ddim_of_the_straight_schedule():
    model = net()
    x_T, times = torch.randn(3, 1, 4, 4), Straight().timesteps(7)
    expected = ddim(model.denoise, x_T, model.schedule, times).add(1).div(2).clamp(0, 1)
    with torch.no_grad():
        assert_close(model.generate(x_T, steps=7, sampler="euler"), expected)


@pytest.mark.parametrize(("sampler", "steps", "calls"), [("euler", 8, 8), ("heun", 9, 9), ("heun", 1, 1)])
def test_samplers_evaluate_the_network_as_often_as_they_say(sampler, steps, calls):
    model, seen = net(), []
    for power in (None, 2.0):
        x_T = torch.randn(2, 1, 4, 4)
        model.generate(x_T, steps=steps, sampler=sampler, power=power, callback=lambda *_: seen.append(1))
    assert len(seen) == 2 * calls


def test_the_loss_of_no_velocity_is_the_distance_of_the_ends():
    torch.manual_seed(0)
    model = FlowMatching(**TINY)  # says 0
    x = torch.randint(0, 256, (512, 1, 28, 28)) / 255
    loss = model.losses_at(x, torch.rand(512)).mean()
    assert float(loss.detach()) == pytest.approx(1 + float((2 * x - 1).square().mean()), rel=0.01)


def test_optimal_transport_pairs_what_is_near():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (64, 1, 2, 2)) / 255
    losses = []
    for coupling in ("independent", "optimal_transport"):
        model = FlowMatching(coupling=coupling, image_shape=(1, 2, 2), **TINY)
        losses.append(float(model.losses_at(x, torch.rand(64)).detach().mean()))
    assert losses[1] < 0.8 * losses[0]
    a, b = torch.randn(2, 6, 1, 2, 2)
    cost = (a[:, None] - b).square().flatten(2).sum(2)
    assert nearest(a, b).tolist() == linear_sum_assignment(cost)[1].tolist()
    assert sorted(nearest(a, b).tolist()) == list(range(6))


def test_logit_normal_times_are_logit_normal():
    t = Straight(True).quantile((torch.arange(10_000) + 0.5) / 10_000).double()
    assert float(t.logit().mean()) == pytest.approx(0, abs=1e-3)
    assert float(t.logit().std()) == pytest.approx(1, abs=5e-3)
    assert Straight().quantile(torch.tensor([0.2])).tolist() == pytest.approx([0.2])


def test_a_test_gives_the_likelihood_of_either_model(data_dir, tmp_path):
    data = FashionMNIST(str(data_dir), batch_size=16, val_size=16)
    for model in (FlowMatching(ode_steps=2, **TINY), DDPM(likelihood="ode", ode_steps=2, **TINY)):
        run = trainer(tmp_path / type(model).__name__, max_epochs=1)
        run.fit(model, datamodule=data)
        found = run.test(model, datamodule=data, verbose=False)[0]
        assert found["test/nll"] > 0 and found["test/bpd"] == pytest.approx(found["test/nll"] / 784 / math.log(2))
        assert "probability flow by 2 steps of rk4, 1 draws" in model.likelihood_kind


def test_what_is_not_there_is_said(monkeypatch):
    with pytest.raises(UserError, match="no sampler ddim"):
        FlowMatching(sampler="ddim", **TINY)
    with pytest.raises(UserError, match="ode_steps"):
        FlowMatching(ode_steps=0, **TINY)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    for options in ({"sampler": "dopri5"}, {"ode_method": "dopri5"}):
        with pytest.raises(UserError, match="pip install torchdiffeq"):
            FlowMatching(**TINY, **options)
