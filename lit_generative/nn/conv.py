"""Convolutional encoder and decoder that halve and double the resolution once per stage."""

from collections.abc import Sequence

from torch import Tensor, nn


def resolutions(size: int, stages: int) -> list[int]:
    """Side lengths from ``size`` down, halved and rounded up at every stage.

    >>> resolutions(28, 3)
    [28, 14, 7, 4]
    """
    sizes = [size]
    for _ in range(stages):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


class ConvEncoder(nn.Module):
    """Images ``(B, C, H, W)`` to ``(B, features)`` by one strided 3x3 convolution per entry of ``hidden``."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        hidden: Sequence[int],
        features: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        c, h, w = image_shape
        layers: list[nn.Module] = []
        for i, o in zip([c, *hidden], hidden, strict=False):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), activation()]
        bottom = resolutions(h, len(hidden))[-1] * resolutions(w, len(hidden))[-1]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(hidden[-1] * bottom, features))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ConvDecoder(nn.Module):
    """Latents ``(B, latent)`` to ``(B, C, H, W)``; the mirror image of :class:`ConvEncoder`."""

    def __init__(
        self,
        latent: int,
        hidden: Sequence[int],
        image_shape: tuple[int, int, int],
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        c, h, w = image_shape
        heights, widths = resolutions(h, len(hidden))[::-1], resolutions(w, len(hidden))[::-1]
        channels = [*reversed(hidden), c]
        bottom = (channels[0], heights[0], widths[0])
        layers: list[nn.Module] = [
            nn.Linear(latent, bottom[0] * bottom[1] * bottom[2]),
            nn.Unflatten(1, bottom),
        ]
        for s in range(len(hidden)):
            # doubling rounds up to an even side: the padding of 1 and this give back odd sides (7 from 4) exactly
            odd = (heights[s + 1] - (2 * heights[s] - 1), widths[s + 1] - (2 * widths[s] - 1))
            layers += [
                activation(),
                nn.ConvTranspose2d(channels[s], channels[s + 1], 3, stride=2, padding=1, output_padding=odd),
            ]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)
