"""Convolutional encoders and decoders with a hidden dense layer between convolutions and latent."""

from collections.abc import Container, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lit_generative.errors import UserError


class Layout(NamedTuple):
    """What the convolutions of a network have in common; all have stride 2."""

    kernel: int
    last_padding: int  # of the encoder's last convolution; 1 of the others
    norms: Container[int]  # the encoder's convolutions that batch norm follows, from 0; in the decoder all but the last
    dropout: float  # of the hidden layer


CONV3 = Layout(kernel=3, last_padding=0, norms=(1,), dropout=0.0)
CONV4 = Layout(kernel=4, last_padding=1, norms=range(99), dropout=0.2)


def _stages(size: int, count: int, layout: Layout) -> list[int]:
    """Side lengths from ``size`` down."""
    sizes = [size]
    for i in range(count):
        padding = layout.last_padding if i == count - 1 else 1
        sizes.append((sizes[-1] + 2 * padding - layout.kernel) // 2 + 1)
    if min(sizes) < 1:
        raise UserError(f"{count} convolutions of stride 2 leave nothing of {size} pixels: shorten `hidden`")
    return sizes


class DenseConvEncoder(nn.Module):
    """Images ``(B, C, H, W)`` to ``(B, features)``: convolutions, one per entry of ``hidden`` but the last, a layer."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        hidden: Sequence[int],
        features: int,
        activation: type[nn.Module],
        layout: Layout,
    ) -> None:
        super().__init__()
        c, h, w = image_shape
        *channels, dense = hidden
        bottom = [_stages(side, len(channels), layout)[-1] for side in (h, w)]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip([c, *channels], channels, strict=False)):
            padding = layout.last_padding if i == len(channels) - 1 else 1
            layers += [nn.Conv2d(before, after, layout.kernel, 2, padding)]
            layers += [nn.BatchNorm2d(after), activation()] if i in layout.norms else [activation()]
        layers += [nn.Flatten(), nn.Linear([c, *channels][-1] * bottom[0] * bottom[1], dense), activation()]
        self.net = nn.Sequential(*layers, nn.Dropout(layout.dropout), nn.Linear(dense, features))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class DenseConvDecoder(nn.Module):
    """Latents ``(B, latent)`` to ``(B, C, H, W)``; the mirror image of :class:`DenseConvEncoder`."""

    def __init__(
        self,
        latent: int,
        hidden: Sequence[int],
        image_shape: tuple[int, int, int],
        activation: type[nn.Module],
        layout: Layout,
    ) -> None:
        super().__init__()
        c, h, w = image_shape
        *channels, dense = hidden
        count = len(channels)
        heights, widths = (_stages(side, count, layout)[::-1] for side in (h, w))
        sizes = [*channels[::-1], c]
        layers: list[nn.Module] = [nn.Linear(latent, dense), activation(), nn.Dropout(layout.dropout)]
        layers += [
            nn.Linear(dense, sizes[0] * heights[0] * widths[0]),
            nn.Unflatten(1, (sizes[0], heights[0], widths[0])),
        ]
        for i in range(count):
            padding = 1 if i else layout.last_padding
            # a transposed convolution gives the smallest side that the encoder's could have had: the rest is added
            least = [2 * (sides[i] - 1) - 2 * padding + layout.kernel for sides in (heights, widths)]
            odd = (heights[i + 1] - least[0], widths[i + 1] - least[1])
            layers += [activation(), nn.ConvTranspose2d(sizes[i], sizes[i + 1], layout.kernel, 2, padding, odd)]
            layers += [nn.BatchNorm2d(sizes[i + 1])] if i < count - 1 else []
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)
