"""Residual networks without norms for GANs (Huang et al., 2024, arXiv:2501.05441, Section 3)."""

from torch import Tensor, nn
from torch.nn import functional as F

from lit_generative.errors import UserError
from lit_generative.nn.dcgan import logits, stages_of
from lit_generative.nn.layout import ImageNetwork

Shape = tuple[int, int, int]


def fold(image_shape: Shape, patch: int) -> Shape:
    """The shape of images whose squares of ``patch`` pixels are channels."""
    c, h, w = image_shape
    if h % patch or w % patch:
        raise UserError(f"images of {h}x{w} pixels cannot be cut into squares of {patch}: set another patch")
    return c * patch**2, h // patch, w // patch


class Bottleneck(nn.Module):
    """x + 1x1, grouped 3x3 and 1x1 convolutions with ``expansion`` times the channels between them.

    The last convolution is initialised to 0, which makes every block the identity at first (Zhang et al., 2019, Fixup).
    """

    def __init__(self, channels: int, expansion: int, group: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = nn.Conv2d(channels, inner, 1)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=max(1, inner // group), bias=False)
        self.contract = nn.Conv2d(inner, channels, 1, bias=False)
        for conv in (self.expand, self.mix):
            nn.init.kaiming_normal_(conv.weight, 0.2)
        nn.init.zeros_(self.contract.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.expand(x), 0.2)
        return x + self.contract(F.leaky_relu(self.mix(h), 0.2))


class Resample(nn.Module):
    """Twice or half the side, bilinearly, and a 1x1 convolution where the channels change."""

    def __init__(self, inputs: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        if self.scale < 1:
            return self.conv(F.avg_pool2d(x, 2))
        return F.interpolate(self.conv(x), scale_factor=self.scale, mode="bilinear")


class R3Generator(ImageNetwork):
    """z ``(B, latent)`` to ``(B, C, H, W)``, without bounds: the discriminator teaches the range [-1, 1]."""

    def __init__(
        self, image_shape: Shape, latent: int, width: int, blocks: int, expansion: int, group: int, patch: int
    ) -> None:
        super().__init__()
        folded = fold(image_shape, patch)
        bottom, doublings = stages_of(folded)
        channels = [width * 2**i for i in reversed(range(doublings + 1))]
        self.linear = nn.Linear(latent, channels[0] * bottom**2)
        self.unflatten = nn.Unflatten(1, (int(channels[0]), bottom, bottom))
        layers: list[nn.Module] = []
        for i, now in enumerate(channels):
            layers += [Resample(channels[i - 1], now, 2.0)] * (i > 0)
            layers += [Bottleneck(now, expansion, group) for _ in range(blocks)]
        self.net = nn.Sequential(*layers, nn.Conv2d(width, folded[0], 1), nn.PixelShuffle(patch))
        self.arrange()

    def forward(self, z: Tensor) -> Tensor:
        return self.net(self.unflatten(self.linear(z)))


class R3Discriminator(ImageNetwork):
    """Images ``(B, C, H, W)`` to `logits`; the mirror image of `R3Generator`."""

    def __init__(
        self, image_shape: Shape, width: int, blocks: int, expansion: int, group: int, patch: int, classes: int = 0
    ) -> None:
        super().__init__()
        folded = fold(image_shape, patch)
        bottom, doublings = stages_of(folded)
        channels = [width * 2**i for i in range(doublings + 1)]
        layers: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(folded[0], width, 1)]
        for i, now in enumerate(channels):
            layers += [Resample(channels[i - 1], now, 0.5)] * (i > 0)
            layers += [Bottleneck(now, expansion, group) for _ in range(blocks)]
        last = channels[-1]
        layers += [nn.Conv2d(last, last, bottom, groups=last, bias=False), nn.Flatten()]
        self.net = nn.Sequential(*layers, nn.Linear(last, 1 + classes, bias=False), logits(classes))
        self.arrange()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
