"""The generator of CycleGAN (Zhu et al., 2017, App. 7.2), layer by layer as in the authors' PyTorch code."""

from torch import Tensor, nn

from lit_generative.nn.dcgan import init_dcgan
from lit_generative.nn.layout import ImageNetwork, arranged


class Residual(nn.Module):
    """x + f(x), f two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ResNetGenerator(ImageNetwork):
    """Images ``(B, in, H, W)`` to ``(B, out, H, W)``, both in [-1, 1]; H and W are multiples of 4, at least 8.

    Two halvings, ``blocks`` residual blocks, two doublings. The numbers of the layers are the authors'.
    """

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(inputs, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
        for channels in (width, 2 * width):
            layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.InstanceNorm2d(2 * channels), nn.ReLU()]
        layers += [Residual(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            up = nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, output_padding=1)
            layers += [up, nn.InstanceNorm2d(channels // 2), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, outputs, 7), nn.Tanh())
        self.apply(init_dcgan)
        self.arrange()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(arranged(x))
