"""Convolutions keep the layout in memory that is fast on their device."""

import pytest
import torch

from lit_generative.models import DCGAN, DDPM, VAE, Pix2Pix
from lit_generative.nn.layout import image_layout

MODELS = {
    "VAE": lambda: VAE(network="conv", hidden=(4, 8), latent=2),
    "DCGAN": lambda: DCGAN(width=4, latent=4),
    "DDPM": lambda: DDPM(channels=(8, 16)),
    "Pix2Pix": lambda: Pix2Pix(image_shape=(3, 32, 32), width=4, num_downs=5),
}


def layouts(model):
    """Whether each convolution's weights are channels last, where that can be told."""
    weights = [p for p in model.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    return {p.is_contiguous(memory_format=torch.channels_last) for p in weights}


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_channels_last_on_a_cpu_and_contiguous_elsewhere(name):
    model = MODELS[name]()
    before = list(model.parameters())
    assert layouts(model) == {True}
    assert all(a is b for a, b in zip(before, model.double().parameters(), strict=True))  # optimisers hold them
    assert layouts(model) == {True}
    assert layouts(model.to("meta")) == {False}


def test_the_layout_is_of_the_device():
    assert image_layout(torch.device("cpu")) is torch.channels_last
    assert image_layout(torch.device("cuda", 1)) is torch.contiguous_format
