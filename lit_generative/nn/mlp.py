"""Fully connected encoder and decoder."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn


def zero_init(layer: nn.Linear | nn.Conv2d) -> None:
    """Set weights and bias to zero, so that the layer starts with output 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module], zero_last: bool = False) -> nn.Sequential:
    """Linear layers of the given sizes with activations between them; with ``zero_last`` the output starts at 0."""
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        last = nn.Linear(i, o)
        layers += [last, activation()]
    if zero_last:
        zero_init(last)
    return nn.Sequential(*layers[:-1])


class MLPEncoder(nn.Module):
    """Images ``(B, C, H, W)`` to ``(B, features)``."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        hidden: Sequence[int],
        features: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        c, h, w = image_shape
        self.net = mlp([c * h * w, *hidden, features], activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))


class MLPDecoder(nn.Module):
    """Latents ``(B, latent)`` to ``(B, C, H, W)``; ``hidden`` is the encoder's and is used in reverse."""

    def __init__(
        self,
        latent: int,
        hidden: Sequence[int],
        image_shape: tuple[int, int, int],
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        c, h, w = image_shape
        self.image_shape = image_shape
        self.net = mlp([latent, *reversed(hidden), c * h * w], activation)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).unflatten(1, self.image_shape)


class MLPAutoencoder(nn.Module):
    """Fully connected autoencoder of images ``(B, C, H, W)`` in [0, 1] with codes ``(B, latent)``."""

    def __init__(self, image_shape: tuple[int, int, int], hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        self.encoder = MLPEncoder(image_shape, hidden, latent, nn.ReLU)
        self.decoder = MLPDecoder(latent, hidden, image_shape, nn.ReLU)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, h: Tensor) -> Tensor:
        return self.decoder(h).sigmoid()
