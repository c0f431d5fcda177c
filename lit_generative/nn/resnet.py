"""Residual networks at constant resolution."""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lit_generative.nn.layout import arranged
from lit_generative.nn.mlp import zero_init


class WeightNormBlock(nn.Module):
    """h + f(h), f two weight-normalised 3x3 convolutions, each after a ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv2d(width, width, 3, padding=1))
        self.second = weight_norm(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(F.relu(self.first(F.relu(h))))


class WeightNormResNet(nn.Module):
    """Images ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``, initially 0.

    The network of RealNVP's couplings (Dinh et al., 2017, Section 4.1) without its batch norm: residual blocks with
    weight normalisation, and a skip connection from every block to the last layer.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv2d(in_channels, width, 3, padding=1))
        self.blocks = nn.ModuleList(WeightNormBlock(width) for _ in range(blocks))
        self.skips = nn.ModuleList(weight_norm(nn.Conv2d(width, width, 1)) for _ in range(blocks + 1))
        self.last = nn.Conv2d(width, out_channels, 1)
        zero_init(self.last)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(arranged(x))
        total = self.skips[0](h)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            h = block(h)
            total = total + skip(h)
        return self.last(F.relu(total))
