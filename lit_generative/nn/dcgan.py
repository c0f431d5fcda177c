"""Convolutional generators and discriminators for GANs; generators end in [-1, 1], discriminators in one logit."""

import math
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lit_generative.errors import UserError
from lit_generative.nn.layout import ImageNetwork

Norm = Literal["batch", "none"]
NORMS: dict[str, Any] = {"batch": nn.BatchNorm2d, "none": nn.Identity}


def stages_of(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Side of the smallest feature map, and the number of doublings from it to the image."""
    _, height, width = image_shape
    bottom = 7 if height % 7 == 0 else 4
    doublings = math.log2(height / bottom) if height >= 2 * bottom else 0.5
    if height != width or doublings != int(doublings):
        raise UserError(f"a DCGAN needs square images of 28, 32, 64, ... pixels, got {height}x{width}: set image_size")
    return bottom, int(doublings)


def init_dcgan(module: nn.Module) -> None:
    """Weights N(0, 0.02), scales of batch norm N(1, 0.02) (Radford et al., 2015, Section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if isinstance(bias := getattr(module, "bias", None), Tensor):
        nn.init.zeros_(bias)


class DCGANGenerator(ImageNetwork):
    """z ``(B, latent)`` to ``(B, C, H, W)`` in [-1, 1], by transposed 4x4 convolutions of stride 2."""

    def __init__(self, image_shape: tuple[int, int, int], latent: int, width: int) -> None:
        super().__init__()
        bottom, doublings = stages_of(image_shape)
        channels = [width * 2**i for i in reversed(range(doublings))]
        layers: list[nn.Module] = [nn.Unflatten(1, (int(latent), 1, 1))]
        layers += [nn.ConvTranspose2d(latent, channels[0], bottom, bias=False)]  # (B, channels[0], bottom, bottom)
        for i, o in zip(channels, [*channels[1:], image_shape[0]], strict=True):
            layers += [nn.BatchNorm2d(i), nn.ReLU(), nn.ConvTranspose2d(i, o, 4, 2, 1, bias=i == width)]
        self.net = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_dcgan)
        self.arrange()

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


def logits(classes: int) -> nn.Module:
    """The last layer of a discriminator: logits ``(B,)``, or ``(B, 1 + classes)`` where there are classes."""
    return nn.Flatten(1 if classes else 0)


class DCGANDiscriminator(ImageNetwork):
    """Images ``(B, C, H, W)`` in [-1, 1] to logits, by 4x4 convolutions of stride 2; see `logits`."""

    def __init__(
        self, image_shape: tuple[int, int, int], width: int, classes: int = 0, norm: Norm = "batch",
        spectral: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        bottom, doublings = stages_of(image_shape)
        channels = [image_shape[0], *(width * 2**i for i in range(doublings))]
        layers: list[nn.Module] = []
        for stage, (i, o) in enumerate(pairwise(channels)):
            first = stage == 0
            layers += [nn.Conv2d(i, o, 4, 2, 1, bias=first or norm == "none")]
            layers += [nn.LeakyReLU(0.2)] if first else [NORMS[norm](o), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1 + classes, bottom, bias=False), logits(classes))
        self.apply(init_dcgan)
        self.arrange()
        if spectral:
            add_spectral_norm(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PixelShuffleGenerator(nn.Module):
    """z ``(B, latent)`` to ``(B, C, 28, 28)`` in [-1, 1]: two linear layers, then sub-pixel convolutions."""

    def __init__(self, image_shape: tuple[int, int, int], latent: int, width: int) -> None:
        super().__init__()
        if tuple(image_shape[1:]) != (28, 28) or width % 8:
            raise UserError(
                "the pixel-shuffle generator needs images of 28x28 pixels and a width divisible by 8, "
                f"got {tuple(image_shape[1:])} and {width}"
            )
        self.net = nn.Sequential(
            nn.Linear(latent, 8 * width),
            nn.BatchNorm1d(8 * width),
            nn.ReLU(),
            nn.Linear(8 * width, width * 49),
            nn.BatchNorm1d(width * 49),
            nn.ReLU(),
            nn.Unflatten(1, (int(width), 7, 7)),
            nn.PixelShuffle(2),  # (B, width / 4, 14, 14)
            nn.Conv2d(width // 4, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.PixelShuffle(2),  # (B, width / 8, 28, 28)
            nn.Conv2d(width // 8, image_shape[0], 3, padding=1),
            nn.Tanh(),
        )
        self.apply(init_dcgan)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class DenseDiscriminator(nn.Module):
    """Images ``(B, C, H, W)`` in [-1, 1] to `logits`: two strided 4x4 convolutions, a hidden layer of 512."""

    def __init__(self, image_shape: tuple[int, int, int], width: int, classes: int = 0, spectral: bool = False) -> None:
        super().__init__()
        c, h, w = image_shape
        self.net = nn.Sequential(
            nn.Conv2d(c, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(2 * width * (h // 4) * (w // 4), 512),
            nn.LeakyReLU(0.2),
            nn.Linear(512, 1 + classes),
            logits(classes),
        )
        self.apply(init_dcgan)
        if spectral:
            add_spectral_norm(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def add_spectral_norm(network: nn.Module) -> None:
    """Divide every weight by its largest singular value (Miyato et al., 2018)."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            spectral_norm(module)
