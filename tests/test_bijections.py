"""Every bijection against autograd, at weights that are not zero, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_generative.flows.bijections import (
    ActNorm,
    Bijection,
    Chain,
    Flatten,
    Permute,
    RunningBatchNorm,
    Split,
    Squeeze,
)
from lit_generative.flows.coupling import Coupling, Halves, Mask, checkerboard, dense
from lit_generative.flows.dequantization import Logit
from lit_generative.likelihoods import standard_normal
from lit_generative.models.realnvp import RealNVP, multiscale
from lit_generative.nn.mlp import mlp
from lit_generative.nn.resnet import WeightNormResNet


def conv(mask, channels):
    kept, changed = mask.sizes(channels)
    return Coupling(mask, WeightNormResNet(kept, 2 * changed, 4, 1), channels)


def linear(mask, dims):
    kept, changed = mask.sizes(dims)
    return Coupling(mask, mlp([kept, 8, 2 * changed], nn.Tanh), dims)


IMAGE, VECTOR = (3, 2, 2), (7,)
CASES = {
    "checkerboard": (IMAGE, lambda: conv(checkerboard(2, 2), 3)),
    "checkerboard, odd kept": (IMAGE, lambda: conv(checkerboard(2, 2, keep_odd=True), 3)),
    "halves of three channels": (IMAGE, lambda: conv(Halves(), 3)),
    "other half of three channels": (IMAGE, lambda: conv(Halves(keep_second=True), 3)),
    "any mask of an image": (IMAGE, lambda: conv(Mask(torch.rand(3, 2, 2) < 0.5), 3)),
    "any mask of a vector": (VECTOR, lambda: linear(Mask(torch.tensor([1, 0, 0, 1, 1, 0, 1])), 7)),
    "halves of a vector": (VECTOR, lambda: linear(Halves(), 7)),
    "batch norm": (IMAGE, lambda: RunningBatchNorm(3)),
    "act norm": (VECTOR, lambda: ActNorm(7)),
    "act norm of images": (IMAGE, lambda: ActNorm(3)),
    "squeeze": (IMAGE, Squeeze),
    "flatten": (IMAGE, lambda: Flatten(IMAGE)),
    "permutation": (VECTOR, lambda: Permute(torch.randperm(7))),
    "split": ((4, 1, 2), lambda: Split((4, 1, 2), Chain(conv(checkerboard(1, 2), 2), Flatten((2, 1, 2))))),
    "logit": (IMAGE, lambda: Logit(0.01)),
    "dense stack": (VECTOR, lambda: Chain(*dense(7, 3, 8, 2, "act", True))),
    "multi-scale stack": ((1, 2, 6), lambda: Chain(*multiscale((1, 2, 6), 2, 4, 1, "batch", True))),
}


def awake(bijection: Bijection) -> Bijection:
    """Random weights and statistics, float64, eval mode."""
    for tensor in [*bijection.parameters(), *(b for b in bijection.buffers() if b.is_floating_point())]:
        tensor.data += 0.3 * torch.rand_like(tensor) if tensor.dim() else 0
    for mask in bijection.modules():
        if isinstance(mask, Mask):
            mask.kept.round_()
    return bijection.double().eval()


@pytest.mark.parametrize("name", CASES)
def test_inverse_and_log_det_are_those_of_the_map(name):
    shape, make = CASES[name]
    bijection, x = awake(make()), torch.rand(5, *shape, dtype=torch.float64)
    z, log_det = bijection(x)
    back, log_det_back = bijection.inverse(z)
    assert log_det.shape == (5,)
    assert_close(back, x, atol=1e-10, rtol=0)
    assert_close(log_det_back, -log_det, atol=1e-10, rtol=0)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda v: bijection(v[None])[0].flatten(), x[i])
        sign, expected = torch.linalg.slogdet(jacobian.reshape(x[i].numel(), x[i].numel()))
        assert sign != 0
        assert_close(log_det[i].detach(), expected, atol=1e-10, rtol=0)
    if name not in ("squeeze", "flatten", "permutation"):
        assert log_det.abs().max() > 1e-3  # the weights do something


@pytest.mark.slow
def test_a_density_integrates_to_one():
    flow = awake(Chain(*dense(2, 4, 16, 2, "act", True)))
    grid = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        z, log_det = flow(x)
        mass = (standard_normal(z) + log_det).exp().sum() * (grid[1] - grid[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-3)


def test_a_samples_density_is_the_bases_corrected():
    flow = awake(Chain(*dense(6, 4, 8, 2, "act", True)))
    z = torch.randn(9, 6, dtype=torch.float64)
    x, log_det = flow.inverse(z)
    again, forward = flow(x)
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(6).double(), 1), 1)
    assert_close(standard_normal(again) + forward, base.log_prob(z) - log_det)


def test_couplings_start_as_the_identity():
    x = torch.rand(3, 4, 4, 4)
    z, log_det = conv(checkerboard(4, 4), 4)(x)
    assert torch.equal(z, x) and torch.equal(log_det, torch.zeros(3))
    z, log_det = Chain(*multiscale((1, 4, 4), 2, 8, 2, "none", True))(x[:, :1])
    assert_close(z.sort(1).values, x[:, 0].flatten(1).sort(1).values)
    assert torch.equal(log_det, torch.zeros(3))


def test_masks_keep_what_they_say():
    """The kept part passes; of the rest every number changes. By turns, all do."""
    x = torch.rand(2, 4, 4, 4, dtype=torch.float64)
    for first, second in (
        (checkerboard(4, 4), checkerboard(4, 4, keep_odd=True)),
        (Halves(), Halves(keep_second=True)),
    ):
        unchanged = [(awake(conv(mask, 4))(x)[0] == x)[0] for mask in (first, second)]
        assert torch.equal(unchanged[0], ~unchanged[1]) and unchanged[0].sum() == 32
    assert unchanged[0][:2].all()
    board = (awake(conv(checkerboard(4, 4), 4))(x)[0] == x)[0, 0]
    assert board.int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]


def test_the_conditioner_sees_only_what_is_kept():
    x = torch.rand(1, 2, 4, 4, dtype=torch.float64)
    coupling = awake(conv(checkerboard(4, 4), 2))
    jacobian = torch.autograd.functional.jacobian(lambda v: coupling(v)[1], x)[0, 0]
    assert (jacobian[:, ~coupling.mask.kept[0].bool()] == 0).all() and jacobian.abs().sum() > 0


@pytest.mark.parametrize("raw", [1e6, -1e6])
def test_scales_are_bounded_by_a_learned_number(raw):
    coupling = Coupling(Halves(), nn.Linear(2, 4), 4)
    nn.init.zeros_(coupling.conditioner.weight)
    nn.init.constant_(coupling.conditioner.bias, raw)
    coupling.log_bound.data.fill_(math.log(3))
    z, log_det = coupling(torch.rand(5, 4))
    assert_close(log_det.detach(), torch.full((5,), math.copysign(2 * 3, raw)))
    assert z.isfinite().all()


def test_squeezed_positions_follow_one_another():
    """The four positions of a 2x2 square of all channels, so that halves are rows, not colours."""
    x = torch.arange(8.0).view(1, 2, 2, 2)  # colours 0-3 and 4-7
    assert Squeeze()(x)[0].flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_batch_norm_runs_and_lets_gradients_through_the_batch_alone():
    norm, batches = RunningBatchNorm(2, momentum=0.75, eps=0.0), torch.randn(6, 50, 2) * 3 + 1
    mean, variance = batches[0].mean(0), batches[0].var(0, correction=0)
    for n, x in enumerate(batches):
        if n:
            rho = min(0.75, n / (n + 1))
            mean = rho * mean + (1 - rho) * x.mean(0)
            variance = rho * variance + (1 - rho) * x.var(0, correction=0)
        z, log_det = norm(x)
        assert_close(z, (x - mean) / variance.sqrt(), atol=1e-5, rtol=1e-5)
        assert_close(log_det, torch.full((50,), float(-0.5 * variance.log().sum())))
    x = batches[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(norm(x)[0][:, 0].sum(), x)
    # d sum(x - m) / dx = 1 - 50 dm/dx, and the batch is a quarter of m
    assert float(gradient[:, 0].sum()) * float(norm.variance[0].sqrt()) == pytest.approx(50 * 0.75, rel=1e-4)
    norm.eval()
    alone, together = norm(batches[0][:1])[0], norm(batches[0])[0][:1]
    assert torch.equal(alone, together)


def test_act_norm_starts_from_its_first_batch_once_and_after_a_checkpoint_not_again():
    x = torch.randn(200, 3, 4, 4) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1) + 7
    norm = ActNorm(3).eval()
    assert torch.equal(norm(x)[0], x) and not norm.initialized  # a look does not start it
    z = norm.train()(x)[0]
    assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    assert_close(z.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(100 * x)
    again = ActNorm(3)
    again.load_state_dict(state)
    again.train()(100 * x)
    for n in (norm, again):
        assert all(torch.equal(n.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize("stack", ["multiscale", "fully_connected"])
def test_half_precision_inside_networks_keeps_the_inverse_and_the_log_det(stack):
    model = RealNVP(stack=stack, width=8, depth=1, couplings=4)
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    model.eval()
    v = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        expected = model.log_density(v)
        with torch.autocast("cpu", torch.bfloat16):
            z, log_det = model.flow(v)
            back = model.flow.inverse(z)[0]
            log_density = model.log_density(v)
    assert log_det.dtype == z.dtype == log_density.dtype == torch.float32
    assert (back - v).abs().max() < 2e-3
    assert_close(log_density, expected, atol=40, rtol=0.02)
