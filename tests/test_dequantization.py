"""From levels to the continuum and back, and what that makes of a density."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_generative.flows.coupling import Coupling, checkerboard
from lit_generative.flows.dequantization import (
    LARGEST,
    Logit,
    UniformDequantization,
    VariationalDequantization,
    dequantize,
    quantize,
)
from lit_generative.likelihoods import bits_per_dim
from lit_generative.models.realnvp import RealNVP

LEVELS = torch.arange(256).view(1, 1, 16, 16) / 255


class Both(nn.Module):
    """Raw scale and shift from both images that it is given."""

    def __init__(self, kept):
        super().__init__()
        self.net = nn.Conv2d(kept + 1, 2, 3, padding=1)

    def forward(self, h):
        return 2 * self.net(h).tanh()


def variational(height=16, width=16):
    return VariationalDequantization(
        Coupling(checkerboard(height, width), Both(1), 1), Coupling(checkerboard(height, width, True), Both(1), 1)
    )


@pytest.mark.parametrize("make", [UniformDequantization, variational])
def test_every_level_comes_back(make):
    dequantization = make()
    for _ in range(200):
        v, _ = dequantization(LEVELS)
        assert v.min() >= 0 and v.max() < 1
        assert torch.equal(dequantization.inverse(v), LEVELS)
    for u in (0.0, LARGEST):  # both ends of every bin
        assert torch.equal(quantize(dequantize(LEVELS, torch.full_like(LEVELS, u))[0]), LEVELS)
    assert torch.equal(quantize(torch.tensor([-0.3, 1.0, 1.7])), torch.tensor([0.0, 1.0, 1.0]))


def test_noise_is_uniform_and_new_every_time():
    x = torch.full((4, 1, 100, 100), 17 / 255)
    a, b = (UniformDequantization()(x)[0] * 256 - 17 for _ in range(2))
    assert not torch.equal(a, b)
    assert float(a.mean()) == pytest.approx(0.5, abs=0.01) and float(a.var()) == pytest.approx(1 / 12, abs=0.002)


def test_a_uniform_density_is_eight_bits():
    """The identity behind the logit, and a base that is uniform on [0, 1) seen through it."""
    model = RealNVP(stack="fully_connected", couplings=2, width=8, depth=1, norm="none", alpha=1e-6)

    def log_density(v, c=None):
        z, log_det = model.flow(v)
        # the law of logit(alpha + (1 - 2 alpha) u), u uniform
        base = -torch.nn.functional.softplus(z) - torch.nn.functional.softplus(-z) - math.log(1 - 2e-6)
        return base.sum(1) + log_det

    model.log_density = log_density
    x = torch.randint(256, (3, 1, 28, 28)) / 255
    assert_close(bits_per_dim(model.log_prob(x, k=3), 784), torch.full((3,), 8.0), atol=1e-4, rtol=0)


def test_the_flow_of_noise_starts_uniform():
    couplings = [Coupling(checkerboard(16, 16), nn.Conv2d(2, 2, 1), 1)]
    nn.init.zeros_(couplings[0].conditioner.weight)
    nn.init.zeros_(couplings[0].conditioner.bias)
    x = LEVELS.expand(50, 1, 16, 16)
    with torch.no_grad():
        v, log_det = VariationalDequantization(*couplings)(x)
    assert_close(log_det, torch.full((50,), -256 * math.log(256)), atol=0.02, rtol=0)
    u = v * 256 - (x * 255).round()
    assert float(u.mean()) == pytest.approx(0.5, abs=0.02) and float(u.var()) == pytest.approx(1 / 12, abs=0.005)


def test_the_noises_density_integrates_to_one_and_knows_the_image():
    """E_q[1 / q(u|x)] over the unit square of a 1x2 image is its area."""
    torch.manual_seed(2)
    dequantization = variational(1, 2)
    with torch.no_grad():
        moments = []
        for level in (0.1, 0.9):
            x = torch.tensor([level, 1 - level]).mul(255).round().div(255).expand(100_000, 1, 1, 2)
            v, log_det = dequantization(x)
            inverse_q = (log_det + 2 * math.log(256)).exp()
            assert float(inverse_q.mean()) == pytest.approx(1, abs=0.02)
            assert inverse_q.std() > 0.1  # it is not uniform
            moments.append((v * 256).sub((x * 255).round()).mean((0, 1, 2)))
    assert (moments[0] - moments[1]).abs().max() > 0.02


def test_bounds_rise_to_the_mass():
    """One pixel of a flow: the mass of each level by numerical integration, all masses together at most 1."""
    torch.manual_seed(1)
    model = RealNVP((1, 1, 2), stack="fully_connected", couplings=2, width=4, depth=1, norm="none", alpha=0.05).eval()
    for p in model.parameters():
        p.data += 0.5 * torch.randn_like(p)
    x = torch.tensor([[40.0, 200.0], [0.0, 255.0], [128.0, 127.0]]).view(3, 1, 1, 2) / 255
    n = 200
    middle = (torch.arange(n) + 0.5) / n
    u = torch.cartesian_prod(middle, middle).view(-1, 1, 1, 2)
    with torch.no_grad():
        mass = torch.stack([model.log_density((image * 255 + u) / 256).exp().mean() / 256**2 for image in x])
        v = (torch.cartesian_prod(*2 * [torch.arange(512) + 0.5]) / 512).view(-1, 1, 1, 2)
        assert 0.5 < float(model.log_density(v).exp().mean()) <= 1.01
        draws = [model.log_prob(x.repeat(400, 1, 1, 1), k=k).view(400, 3).mean(0) for k in (1, 8, 64)]
    bounds = [*draws, mass.log()]
    for lower, higher in pairwise(bounds):
        assert (lower <= higher + 2e-3).all()
    assert_close(draws[-1], mass.log(), atol=5e-3, rtol=0)


def test_the_logit_keeps_its_ends_finite_and_precise():
    logit, ends = Logit(1e-6), torch.tensor([0.0, 2**-24, 1 - 2**-24, 1.0]).view(4, 1, 1, 1)
    z, log_det = logit(ends)
    exact, exact_det = logit(ends.double())
    assert z.isfinite().all() and log_det.isfinite().all()
    assert_close(z.double(), exact, atol=1e-5, rtol=1e-5)
    assert_close(log_det.double(), exact_det, atol=1e-4, rtol=1e-5)
    assert_close(logit.inverse(exact)[0], ends.double(), atol=1e-12, rtol=0)
