"""beta-VAE against the VAE that it is at beta = 1, and the networks with a dense layer."""

import pytest
import torch
from torch.testing import assert_close

from lit_generative.models.beta_vae import BetaVAE
from lit_generative.models.vae import VAE
from lit_generative.nn.conv import CONV3, CONV4, ConvDecoder, ConvEncoder


def pair(beta, **options):
    models = []
    for cls, own in ((VAE, {}), (BetaVAE, {"beta": beta})):
        torch.manual_seed(0)
        models.append(cls(image_shape=(1, 4, 4), latent=3, hidden=(8,), **options, **own))
    return models


def objective(model, x):
    torch.manual_seed(1)
    return model.objective(x)


@pytest.mark.parametrize("options", [{}, {"kl_warmup": 3}, {"free_bits": 0.1}])
def test_beta_1_is_the_vae_to_the_bit(options):
    vae, beta_vae = pair(1.0, **options)
    x = torch.rand(5, 1, 4, 4).mul(255).round().div(255)
    for model in (vae, beta_vae):
        objective(model, x)["loss"].mean().backward()
    for name, value in objective(vae, x).items():
        assert torch.equal(value, objective(beta_vae, x)[name])
    for a, b in zip(vae.parameters(), beta_vae.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_beta_weighs_nats_and_leaves_the_bound_alone():
    vae, beta_vae = pair(4.0)
    x = torch.rand(5, 1, 4, 4).mul(255).round().div(255)
    a, b = objective(vae, x), objective(beta_vae, x)
    assert_close(b["loss"] - a["loss"], 3 * a["kl"])
    for name in ("elbo", "kl", "reconstruction"):
        assert torch.equal(a[name], b[name])
    torch.manual_seed(1)
    bound = vae.log_prob(x)
    torch.manual_seed(1)
    assert torch.equal(bound, beta_vae.log_prob(x))
    assert beta_vae.monitor == "val/loss"  # which validation sets to the negative ELBO


def test_a_negative_beta_is_refused():
    with pytest.raises(ValueError, match="beta must be >= 0, got -"):
        BetaVAE(beta=-1.0)


def test_the_course_networks_have_the_courses_sizes():
    model = VAE(network="conv3", hidden=(8, 16, 32, 128))
    layers = [type(layer).__name__ for layer in model.encoder.net]
    assert layers[:8] == ["Conv2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "ReLU", "Flatten"]
    assert model.encoder.net[8].in_features == 288
    convolutions = [layer for layer in model.encoder.net if isinstance(layer, torch.nn.Conv2d)]
    assert [c.padding for c in convolutions] == [(1, 1), (1, 1), (0, 0)]
    faces = VAE((3, 128, 128), network="conv4", hidden=(4, 4, 4, 4, 16), latent=2)
    assert [c.kernel_size for c in faces.encoder.net if isinstance(c, torch.nn.Conv2d)] == [(4, 4)] * 4
    assert sum(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in faces.modules()) == 2


@pytest.mark.parametrize("layout", [CONV3, CONV4], ids=["conv3", "conv4"])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (27, 41), (64, 30)])
def test_the_decoder_gives_the_encoders_size_back(layout, size):
    for count in (1, 2, 3):
        hidden = (*[4] * count, 8)
        x = torch.rand(2, 3, *size)
        h = ConvEncoder((3, *size), hidden, 5, torch.nn.ReLU, layout)(x)
        assert h.shape == (2, 5)
        assert ConvDecoder(5, hidden, (3, *size), torch.nn.ReLU, layout)(h).shape == x.shape


def test_too_many_convolutions_are_named():
    with pytest.raises(ValueError, match="5 convolutions of stride 2 are too many for 28 pixels"):
        VAE(network="conv4", hidden=(4, 4, 4, 4, 4, 8))


def test_interpolations_begin_and_end_at_samples():
    model = VAE((1, 4, 4), latent=3, hidden=(8,)).eval()
    torch.manual_seed(2)
    ways = model.interpolate(4, 5).unflatten(0, (4, 5))
    torch.manual_seed(2)
    z = torch.randn(2, 4, 3)
    with torch.no_grad():
        assert_close(ways[:, 0], model.decode(z[0]))
        assert_close(ways[:, -1], model.decode(z[1]))
    assert not ways.requires_grad
