"""DCGAN: its losses, networks and initial weights."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_generative.models.dcgan import DCGAN


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


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 64, 64)])
def test_weights_start_as_in_the_paper(shape):
    """N(0, 0.02), batch norm's scales N(1, 0.02), biases 0; images in [-1, 1]."""
    model = DCGAN(image_shape=shape, latent=50, width=64)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for values, mean in (
        (torch.cat([m.weight.detach().flatten() for m in convolutions]), 0.0),
        (torch.cat([m.weight.detach() for m in norms]), 1.0),
    ):
        assert float(values.mean()) == pytest.approx(mean, abs=0.005)
        assert float(values.std()) == pytest.approx(0.02, rel=0.15)
    assert all((m.bias == 0).all() for m in [*convolutions, *norms] if m.bias is not None)
    fake = model.generator(100 * torch.randn(4, 50))
    assert fake.shape == (4, *shape) and fake.abs().max() <= 1
    assert model.discriminator(fake).shape == (4,)
    assert {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}


def test_adam_has_the_papers_momentum():
    for optimizer in DCGAN(width=4, beta1=0.25).default_optimizers():
        assert optimizer.defaults["betas"] == (0.25, 0.999) and optimizer.defaults["lr"] == 2e-4


def test_spectral_norm_bounds_every_layer():
    model = DCGAN(width=8, spectral_norm=True)
    for _ in range(50):  # power iterations
        model.discriminator(torch.randn(4, 1, 28, 28))
    for layer in model.discriminator.modules():
        if isinstance(layer, nn.Conv2d):
            assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.02)


def test_layers_of_the_pixel_shuffling_generator():
    model = DCGAN(network="pixel_shuffle", latent=64)
    shapes = [tuple(p.shape) for name, p in model.generator.named_parameters() if p.dim() > 1]
    assert shapes == [(512, 64), (3136, 512), (32, 16, 3, 3), (1, 8, 3, 3)]
    shapes = [tuple(p.shape) for name, p in model.discriminator.named_parameters() if p.dim() > 1]
    assert shapes == [(64, 1, 4, 4), (128, 64, 4, 4), (512, 6272), (1, 512)]
    assert model.eval().sample(1).shape == (1, 1, 28, 28)
    with pytest.raises(ValueError, match=r"28x28 pixels and a width divisible by 8, got \(28, 28\) and 12"):
        DCGAN(network="pixel_shuffle", width=12)
