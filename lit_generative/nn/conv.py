"""Convolutional encoder and decoder that halve and double the resolution once per stage."""

from collections.abc import Container, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lit_generative.errors import UserError
from lit_generative.nn.layout import ImageNetwork


class Layout(NamedTuple):
    """Hyper-parameters of an encoder's and decoder's convolutions, all of stride 2."""

    kernel: int = 3
    last_padding: int = 1  # of the encoder's last convolution; the others have 1
    norms: Container[int] = ()  # encoder convolutions with batch norm; the decoder has it if ``hidden_layer``
    hidden_layer: bool = False  # a dense layer, the last of ``hidden``, next to the latent
    dropout: float = 0.0  # after that layer


CONV = Layout()
CONV3 = Layout(last_padding=0, norms=(1,), hidden_layer=True)
CONV4 = Layout(kernel=4, norms=range(99), hidden_layer=True, dropout=0.2)


def resolutions(size: int, stages: int, layout: Layout = CONV) -> list[int]:
    """Side lengths of the feature maps: ``size``, then after each convolution.

    >>> resolutions(28, 3)
    [28, 14, 7, 4]
    """
    sizes = [size]
    for i in range(stages):
        padding = layout.last_padding if i == stages - 1 else 1
        sizes.append((sizes[-1] + 2 * padding - layout.kernel) // 2 + 1)
    if min(sizes) < 1:
        raise UserError(f"{stages} convolutions of stride 2 are too many for {size} pixels: shorten `hidden`")
    return sizes


class ConvEncoder(ImageNetwork):
    """Images ``(B, C, H, W)`` to ``(B, features)`` by one strided convolution per entry of ``hidden``."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        hidden: Sequence[int],
        features: int,
        activation: type[nn.Module],
        layout: Layout = CONV,
    ) -> None:
        super().__init__()
        c, h, w = image_shape
        channels, dense = (hidden[:-1], hidden[-1]) if layout.hidden_layer else (hidden, features)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip([c, *channels], channels, strict=False)):
            padding = layout.last_padding if i == len(channels) - 1 else 1
            layers += [nn.Conv2d(before, after, layout.kernel, 2, padding)]
            layers += [nn.BatchNorm2d(after), activation()] if i in layout.norms else [activation()]
        bottom = [resolutions(side, len(channels), layout)[-1] for side in (h, w)]
        layers += [nn.Flatten(), nn.Linear([c, *channels][-1] * bottom[0] * bottom[1], dense)]
        if layout.hidden_layer:
            layers += [activation(), nn.Dropout(layout.dropout), nn.Linear(dense, features)]
        self.net = nn.Sequential(*layers)
        self.arrange()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ConvDecoder(ImageNetwork):
    """Latents ``(B, latent)`` to ``(B, C, H, W)``; the mirror image of :class:`ConvEncoder`."""

    def __init__(
        self,
        latent: int,
        hidden: Sequence[int],
        image_shape: tuple[int, int, int],
        activation: type[nn.Module],
        layout: Layout = CONV,
    ) -> None:
        super().__init__()
        c, h, w = image_shape
        channels = hidden[:-1] if layout.hidden_layer else hidden
        heights, widths = (resolutions(side, len(channels), layout)[::-1] for side in (h, w))
        sizes = [*reversed(channels), c]
        layers: list[nn.Module] = []
        if layout.hidden_layer:
            layers = [nn.Linear(latent, hidden[-1]), activation(), nn.Dropout(layout.dropout)]
        layers += [
            nn.Linear(hidden[-1] if layout.hidden_layer else latent, sizes[0] * heights[0] * widths[0]),
            nn.Unflatten(1, (sizes[0], heights[0], widths[0])),
        ]
        for i in range(len(channels)):
            padding = 1 if i else layout.last_padding
            # several sizes have the same half: output_padding chooses the encoder's
            smallest = [2 * (sides[i] - 1) - 2 * padding + layout.kernel for sides in (heights, widths)]
            padded = (heights[i + 1] - smallest[0], widths[i + 1] - smallest[1])
            layers += [activation(), nn.ConvTranspose2d(sizes[i], sizes[i + 1], layout.kernel, 2, padding, padded)]
            if layout.hidden_layer and i < len(channels) - 1:
                layers += [nn.BatchNorm2d(sizes[i + 1])]
        self.net = nn.Sequential(*layers)
        self.arrange()

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)
