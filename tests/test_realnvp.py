"""RealNVP: its stacks, its likelihood, its latent space and its optimiser."""

import math

import pytest
import torch
from stubs import trainer
from torch import nn
from torch.testing import assert_close

from datamodules import FashionMNIST
from lit_generative.flows.bijections import RunningBatchNorm
from lit_generative.flows.coupling import Coupling, Halves
from lit_generative.models.realnvp import RealNVP
from lit_generative.nn.resnet import WeightNormBlock, WeightNormResNet


def small(**kwargs):
    model = RealNVP(**({"width": 4, "depth": 1, "couplings": 4} | kwargs))
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return model.eval()


def images(n=4):
    return torch.randint(256, (n, 1, 28, 28)) / 255


def couplings(model):
    return [m for m in model.flow.modules() if isinstance(m, Coupling)]


def test_the_papers_stack():
    """Checkerboards x3 at 28x28, channels x3 at 14x14, then half of them, checkerboards x4."""
    found = couplings(RealNVP(width=16, depth=3))
    channel = [isinstance(c.mask, Halves) for c in found]
    assert channel == [False] * 3 + [True] * 3 + [False] * 4
    kept = [c.mask.keep_second if isinstance(c.mask, Halves) else bool(c.mask.kept[0, 0, 1]) for c in found]
    assert kept == [False, True, False] * 2 + [False, True] * 2
    assert [c.mask.kept.shape[-1] for c in found if not isinstance(c.mask, Halves)] == [28] * 3 + [14] * 4
    assert [len(c.log_bound) for c in found] == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert [c.conditioner.first.weight.shape[0] for c in found] == [16] * 3 + [32] * 7
    assert all(sum(isinstance(m, WeightNormBlock) for m in c.modules()) == 3 for c in found)
    assert sum(isinstance(m, RunningBatchNorm) for m in RealNVP(width=4).modules()) == 10
    three = couplings(RealNVP(width=4, depth=1, scales=3))
    assert len(three) == 16 and len(three[-1].log_bound) == 4


@pytest.mark.parametrize("stack", ["multiscale", "fully_connected"])
def test_without_alternation_half_of_an_image_passes_as_it_is(stack):
    def unchanged(alternate):
        model, v = small(stack=stack, norm="none", alternate=alternate), torch.rand(2, 1, 28, 28)
        z, logits = model.flow(v)[0][0], model.flow.bijections[0](v)[0][0]
        return sum(bool((number == z).any()) for number in logits.flatten())

    # the stack of channels keeps half of what the checkerboard kept; what it factors out is not met again
    assert unchanged(True) == 0 and unchanged(False) >= 784 / 8


def test_scores_do_not_depend_on_the_batchs_company():
    model, v = small(), torch.rand(6, 1, 28, 28)
    assert_close(model.log_density(v)[:2], model.log_density(v[:2]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
@pytest.mark.parametrize("stack", ["multiscale", "fully_connected"])
def test_images_survive_the_latent_space(stack, dequantization):
    model, x = small(stack=stack, dequantization=dequantization), images()
    z = model.encode(x)
    assert z.shape == (4, 784) and torch.equal(model.decode(z), x)


def test_temperature_shrinks_the_latents():
    model = small()
    assert_close(model.sample(2, temperature=0.0), model.decode(torch.zeros(2, 784)))
    seen = []
    model.decode = lambda z, c=None: seen.append(z) or z
    model.sample(20, temperature=0.5)
    assert float(seen[0].std()) == pytest.approx(0.5, rel=0.02)
    with pytest.raises(ValueError, match="temperature must be finite and >= 0, got -1"):
        model.sample(2, temperature=-1)


def test_only_the_scales_of_weight_norm_decay():
    model = RealNVP(weight_decay=0.1, width=4, depth=1)
    (optimizer,) = model.default_optimizers()
    decaying = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    scales = {
        id(m.parametrizations.weight.original0)
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and hasattr(m, "parametrizations")
    }
    assert decaying == scales and len(scales) == 10 * (1 + 2 + 2)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}


def test_a_test_reports_bounds_inverse_and_broken_likelihoods(data_dir, tmp_path):
    model = small(test_k=3)
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
    found = trainer(tmp_path, logger=False).test(model, datamodule=data, verbose=False)[0]
    assert found["test/elbo"] < -found["test/nll"] - 1 and found["test/not_finite"] == 0
    assert found["test/bpd"] == pytest.approx(found["test/nll"] / (784 * math.log(2)), rel=1e-5)
    assert 0 <= found["test/inverse_error"] < 1e-4
    assert "40 images" in model.describe_test() and "3 draws of uniform dequantisation" in model.describe_test()

    class Broken(RealNVP):
        def log_density(self, v, c=None):
            return super().log_density(v).index_fill(0, torch.tensor([1]), math.nan)

    broken = Broken(width=4, depth=1)
    found = trainer(tmp_path, logger=False).test(broken, datamodule=data, verbose=False)[0]
    assert found["test/not_finite"] == pytest.approx(3 / 40)  # one of each batch: counted, not dropped
    assert found["test/nll"] == math.inf
    assert broken.log_prob(images())[1] == -math.inf
    assert found["test/nll_stderr"] == math.inf
    broken.log_density = lambda v, c=None: torch.full((len(v),), math.inf)  # nothing may be chosen for it
    assert (broken.log_prob(images()) == -math.inf).all()


@pytest.mark.parametrize("error", [0.25, math.nan])
def test_a_wrong_inverse_is_seen(error, data_dir, tmp_path):
    model = small()
    inverse = model.flow.inverse
    model.flow.inverse = lambda z: (inverse(z)[0] + error, 0)
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
    found = trainer(tmp_path, logger=False).test(model, datamodule=data, verbose=False)[0]["test/inverse_error"]
    assert found == math.inf if math.isnan(error) else found == pytest.approx(error, abs=1e-3)


def test_training_maximises_the_bound_and_evaluation_draws_by_itself(data_dir, tmp_path):
    model, batch = small(), (images(), None)
    torch.manual_seed(3)
    loss = model.training_step(batch, 0)
    torch.manual_seed(3)
    assert_close(loss, -model.log_weights(batch[0]).mean())
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        run = trainer(tmp_path, logger=False)
        found.append(run.validate(model, datamodule=data, verbose=False)[0])
        run.predict(model, datamodule=data, return_predictions=False)
        assert torch.equal(before, torch.random.get_rng_state())
    assert found[0] == found[1]


def test_variational_noise_learns(data_dir, tmp_path):
    model = RealNVP(width=4, depth=1, dequantization="variational")
    before = {name: p.detach().clone() for name, p in model.dequantization.named_parameters()}
    masks = [c.mask.kept for c in model.dequantization.couplings]
    assert len(masks) == 4 and torch.equal(masks[0], 1 - masks[1]) and torch.equal(masks[0], masks[2])
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
    trainer(tmp_path, max_steps=6, limit_val_batches=0, logger=False).fit(model, datamodule=data)
    assert before and not [n for n, p in model.dequantization.named_parameters() if torch.equal(p, before[n])]


def test_a_look_does_not_change_a_model_in_training():
    """Data-dependent starts and running statistics wait for gradients."""
    for norm in ("act", "batch"):
        model = RealNVP(width=4, depth=1, norm=norm)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            model.encode(images())
            model.log_prob(images())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.log_prob(images())
        assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_blocks_are_residual_and_all_of_them_reach_the_end():
    net = WeightNormResNet(2, 3, 4, 2)
    nn.init.normal_(net.last.weight)
    h = torch.randn(2, 4, 5, 5)
    assert not torch.equal(net.blocks[0](h), h)
    nn.init.zeros_(net.blocks[0].second.parametrizations.weight.original0)
    nn.init.zeros_(net.blocks[0].second.bias)
    assert torch.equal(net.blocks[0](h), h)
    x = torch.randn(2, 2, 5, 5)
    for skip in net.skips:
        before = net(x)
        nn.init.zeros_(skip.parametrizations.weight.original0)
        assert not torch.equal(net(x), before)


def test_half_precision_throughout_is_refused(data_dir, tmp_path):
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
    with pytest.raises(ValueError, match=r"RealNVP cannot run in bf16-true: .* choose bf16-mixed"):
        trainer(tmp_path, precision="bf16-true", logger=False).fit(small(), datamodule=data)


@pytest.mark.parametrize("stack", ["multiscale", "fully_connected"])
def test_images_of_another_kind_are_refused(stack):
    model = small(stack=stack)
    for act in (model.log_prob, model.encode, model.log_density):
        with pytest.raises(
            ValueError, match=r"RealNVP takes float .* \(B, 1, 28, 28\) .* got float32 \(2, 1, 32, 32\)"
        ):
            act(torch.rand(2, 1, 32, 32))
        with pytest.raises(TypeError, match=r"RealNVP takes float images .* in \[0, 1\], got uint8"):
            act(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="cannot be halved 3 times: set fewer scales"):
        RealNVP(scales=4)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 0\.5\)"):
        RealNVP(alpha=0.0)
