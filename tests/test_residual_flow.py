"""Residual flows: Lipschitz bounds, log-determinants and their gradients by independent routes, inverses."""

import math

import pytest
import torch
from stubs import trainer
from torch.testing import assert_close

from datamodules import FashionMNIST
from lit_generative.errors import UserError
from lit_generative.flows.bijections import ActNorm, Chain
from lit_generative.flows.residual import Residual, Terms
from lit_generative.likelihoods import standard_normal
from lit_generative.models.residual_flow import ResidualFlow
from lit_generative.nn.lipschitz import LipSwish, SpectralConv, SpectralLinear, lipschitz_convs, lipschitz_mlp


def awake(net, scale=3.0):
    """Weights so large that their norms are bounded, and biases."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            p += scale * torch.randn_like(p) if "weight" in name else 0.3 * torch.randn_like(p)
    return net.double()


def block(dims=4, **options):
    torch.manual_seed(0)
    return Residual(awake(lipschitz_mlp(dims, 8, 2, 0.9)), **options)


def jacobians(f, x):
    """Of each row of ``x``, ``(B, D, D)``."""
    rows = [torch.autograd.functional.jacobian(lambda row: f(row)[0].flatten(), row[None]) for row in x]
    return torch.stack([row.flatten(1) for row in rows])


@pytest.mark.parametrize(
    "make", [lambda: SpectralLinear(5, 7, 0.9), *(lambda k=k: SpectralConv((2, 4, 4), 3, k, 0.9) for k in (1, 3))]
)
def test_the_norm_is_that_of_the_whole_map(make):
    torch.manual_seed(0)
    layer = awake(make())
    shape = layer.v.shape[1:]
    points = torch.eye(shape.numel(), dtype=torch.float64).unflatten(1, shape)
    matrix = (layer(points) - layer(torch.zeros_like(points))).flatten(1)
    assert float(torch.linalg.svdvals(matrix.detach())[0]) == pytest.approx(0.9, rel=2e-3)  # which was far above
    with torch.no_grad():
        layer.weight.mul_(0.01)
    small = (layer(points) - layer(torch.zeros_like(points))).flatten(1)
    layer.coefficient = 1e9
    assert torch.linalg.svdvals(small)[0] < 0.9  # left as it is
    assert_close((layer(points) - layer(torch.zeros_like(points))).flatten(1), small)


def test_lipswish_has_slopes_of_at_most_one():
    swish = LipSwish().double()
    for beta in (-3.0, 0.5, 6.0):
        swish.raw.data.fill_(beta)
        x = torch.linspace(-30, 30, 20_001, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(swish(x).sum(), x)
        assert slope.abs().max() <= 1.0


def test_blocks_stay_contractions_while_they_learn():
    model = ResidualFlow(image_shape=(1, 4, 4), scales=2, blocks=2, width=4).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(8):
        optimizer.zero_grad()
        (-model.log_weights(torch.randint(0, 256, (16, 1, 4, 4)).double() / 255).mean()).backward()
        optimizer.step()
    blocks = [m for m in model.modules() if isinstance(m, Residual)]
    assert len(blocks) == 4
    for b, shape in zip(blocks, [(1, 4, 4)] * 2 + [(4, 2, 2)] * 2, strict=True):
        x, y = 3 * torch.randn(2, 500, *shape, dtype=torch.float64)
        ratio = (b.g(x) - b.g(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
        assert ratio.max() < 0.99
        assert torch.linalg.svdvals(jacobians(b.g, x[:20])).max() < 0.99


@pytest.mark.parametrize("make", [lambda: lipschitz_mlp(6, 8, 2, 0.9), lambda: lipschitz_convs((2, 4, 6), 5, 0.9)])
def test_products_with_the_jacobian_are_autograds(make):
    torch.manual_seed(0)
    g = awake(make())
    x = torch.randn(3, *g[1].v.shape[1:], dtype=torch.float64, requires_grad=True)
    y, product = g.linearize(x)
    w = torch.randn_like(y)
    assert_close(y, g(x))
    assert_close(product(w), torch.autograd.grad(g(x), x, w)[0])
    parameters = list(g.parameters())
    found = torch.autograd.grad(product(w).square().sum(), [x, *parameters], allow_unused=True)
    products = torch.autograd.grad(g(x), x, w, create_graph=True)[0]
    expected = torch.autograd.grad(products.square().sum(), [x, *parameters], allow_unused=True, materialize_grads=True)
    for a, b in zip(found, expected, strict=True):
        assert_close(torch.zeros_like(b) if a is None else a, b)


def test_the_exact_log_determinant_is_autograds():
    b = block(trace="exact")
    x = torch.randn(5, 4, dtype=torch.float64)
    z, log_det = b(x)
    jacobian = jacobians(lambda row: b(row)[0], x)
    assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)
    assert_close(z, x + b.g(x))


@pytest.mark.parametrize("training", [True, False])
def test_estimates_are_unbiased_and_truncations_are_not(training):
    x = torch.randn(1, 4, dtype=torch.float64).expand(60_000, 4)

    def linear(trace):  # its Jacobian is large
        torch.manual_seed(0)
        return Residual(awake(SpectralLinear(4, 4, 0.9)), trace, 2, 2).train(training)

    exact = float(linear("exact")(x[:1])[1].detach())
    for trace in ("unbiased", "truncated"):
        b = linear(trace)
        means = torch.stack([b(part)[1].detach().mean() for part in x.split(50)])  # 1,200 draws of N
        error = float(means.std()) / math.sqrt(len(means))
        assert (abs(float(means.mean() - exact)) < 4 * error) == (trace == "unbiased")


def test_the_gradient_is_that_of_the_exact_log_determinant():
    exact, estimated = block(trace="exact"), block(trace="unbiased")
    x = torch.randn(3, 4, dtype=torch.float64)
    parameters = list(exact.parameters())

    def gradient(b, x):
        x = x.clone().requires_grad_()
        z, log_det = b(x)
        loss = (standard_normal(z) + log_det).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [x, *b.parameters()])])

    expected = gradient(exact, x)
    assert len(parameters) > 6 and expected[12:].abs().max() > 0
    found = torch.stack([gradient(estimated, x) for _ in range(6000)])
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - expected).abs() < 4.5 * error + 1e-9).all()
    assert error.max() < 0.2 * expected.abs().max()  # so that the comparison says something


def test_values_do_not_depend_on_whether_a_gradient_is_wanted():
    b = block()
    x = torch.randn(3, 4, dtype=torch.float64)
    results = []
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        torch.manual_seed(1)
        with context:
            results.append(b(x))
    for z, log_det in results[1:]:
        assert_close(z, results[0][0].detach()), assert_close(log_det, results[0][1].detach())
        assert not z.requires_grad and not log_det.requires_grad


@pytest.mark.parametrize("make", [lambda: lipschitz_mlp(6, 8, 2, 0.97), lambda: lipschitz_convs((2, 4, 4), 5, 0.97)])
def test_the_inverse_is_found(make):
    torch.manual_seed(0)
    b = Residual(awake(make()), tolerance=1e-10).eval()
    shape = next(m for m in b.g if hasattr(m, "v")).v.shape[1:]
    x = 2 * torch.randn(7, *shape, dtype=torch.float64)
    with torch.no_grad():
        found, log_det = b.inverse(b(x)[0])
    assert_close(found, x, rtol=0, atol=1e-8)
    assert 1 < b.iterated < 1000 and log_det.shape == (7,)


def test_the_density_of_the_plane_integrates_to_one():
    torch.manual_seed(0)
    blocks = [Residual(awake(lipschitz_mlp(2, 8, 1, 0.9)), "exact") for _ in range(2)]
    flow = Chain(blocks[0], ActNorm(2).double(), blocks[1]).eval()
    axis = torch.linspace(-25, 25, 301, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        z, log_det = flow(x)
    total = (standard_normal(z) + log_det).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-3)


def test_russian_roulette_divides_each_term_by_the_chance_that_it_is_computed():
    torch.manual_seed(0)
    terms = Terms(2, 0.5)
    counts = torch.tensor([len(terms.draw()) for _ in range(20_000)])
    drawn = max((terms.draw() for _ in range(200)), key=len)
    for k, chance in enumerate(drawn[:6], 1):
        assert float((counts >= k).double().mean()) == pytest.approx(chance, abs=0.015)
    assert Terms(3, 1.0).draw() == [1.0] * 3
    with pytest.raises(UserError, match="terms must be >= 1"):
        Terms(0, 0.5)


def test_a_flow_that_was_loaded_is_bounded_at_once(tmp_path):
    model = ResidualFlow(image_shape=(1, 4, 4), scales=1, blocks=1, width=4)
    layer = next(m for m in model.modules() if isinstance(m, SpectralConv))
    state = {name: 50 * v if name.endswith("weight") else v for name, v in model.state_dict().items()}
    model.encode(torch.zeros(2, 1, 4, 4))  # the vectors of the first weights are found
    model.load_state_dict(state)
    b = next(m for m in model.modules() if isinstance(m, Residual))
    x, y = torch.randn(2, 300, 1, 4, 4)
    ratio = (b.g(x) - b.g(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert ratio.max() < 1 and layer.weight.abs().max() > 5


def test_a_test_logs_how_long_its_inverse_took(data_dir, tmp_path):
    model = ResidualFlow(scales=2, blocks=1, width=4, eval_terms=3)
    data = FashionMNIST(str(data_dir), batch_size=16, val_size=16)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, datamodule=data)
    found = run.test(model, datamodule=data, verbose=False)[0]
    assert found["test/inverse_error"] < 1e-3 and 1 < found["test/inverse_iterations"] < 1000
    assert found["test/not_finite"] == 0
    for options in ({"coefficient": 1.0}, {"blocks": 0}, {"scales": 4}):
        with pytest.raises(UserError):
            ResidualFlow(**options)


def test_a_training_step_in_bfloat16_is_that_of_float32_but_for_rounding():
    torch.manual_seed(0)
    model = ResidualFlow(image_shape=(1, 8, 8), scales=2, blocks=2, width=8)
    x = torch.randint(0, 256, (16, 1, 8, 8)).float() / 255
    model.log_weights(x)  # sets the act norms
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = -model.log_weights(x).mean()
        loss.backward()
        found.append((float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (exact, slope), (rounded, other) = found
    assert rounded == pytest.approx(exact, abs=0.2) and rounded != exact  # of 250 nats
    assert torch.cosine_similarity(slope, other, 0) > 0.999


def test_both_directions_are_exact_under_autocast():
    b = block().eval().float()
    x = torch.randn(5, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        z, log_det = b(x)
        found, _ = b.inverse(z)
    assert_close(z, x + b.g(x).detach()), assert_close(found, x, rtol=0, atol=1e-4)
    assert log_det.dtype == torch.float32 and b.iterated < 100
