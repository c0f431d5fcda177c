"""The networks of pix2pix (Isola et al., 2017, App. 6.1), layer by layer as in the authors' PyTorch code."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_generative.errors import UserError
from lit_generative.nn.dcgan import init_dcgan
from lit_generative.nn.layout import ImageNetwork, arranged

Norm = Literal["batch", "instance"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.InstanceNorm2d(channels)


class UNetGenerator(ImageNetwork):
    """Source images ``(B, in, H, W)`` to target images ``(B, out, H, W)``, both in [-1, 1].

    The resolution is halved ``num_downs`` times and doubled again, with a skip connection at every size; H and W must
    be multiples of 2^num_downs. The noise is dropout in the decoder's widest layers except the innermost, also outside
    of training if ``always_drop``. With ``by_image``, batch norm outside of training uses each image's own statistics,
    which for any batch size gives the paper's results at batch size 1 (Section 3.4).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        num_downs: int,
        width: int,
        norm: Norm,
        dropout: float,
        always_drop: bool = True,
        by_image: bool = True,
    ) -> None:
        super().__init__()
        self.dropout, self.always_drop, self.by_image = dropout, always_drop, by_image
        channels = [width * min(8, 2**i) for i in range(num_downs)]
        bias = norm == "instance"
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.down_norms, self.up_norms = nn.ModuleList(), nn.ModuleList()
        for i, o in enumerate(channels):
            outermost, innermost = i == 0, i == num_downs - 1
            before = inputs if outermost else channels[i - 1]
            self.downs.append(nn.Conv2d(before, o, 4, 2, 1, bias=bias))
            self.down_norms.append(nn.Identity() if outermost or innermost else norm_layer(norm, o))
            after = outputs if outermost else before
            self.ups.append(nn.ConvTranspose2d(o if innermost else 2 * o, after, 4, 2, 1, bias=bias or outermost))
            self.up_norms.append(nn.Identity() if outermost else norm_layer(norm, after))
        # the authors' networks have six levels or more; smaller ones are ours
        self.dropped = range(4 if num_downs > 5 else max(1, num_downs - 4), num_downs - 1)
        self.apply(init_dcgan)
        self.arrange()

    def forward(self, c: Tensor) -> Tensor:
        h, skips = arranged(c), []
        for i, (down, norm) in enumerate(zip(self.downs, self.down_norms, strict=True)):
            h = self.normalised(norm, down(F.leaky_relu(h, 0.2) if i else h))
            skips.append(h)
        h = skips.pop()
        for i in reversed(range(len(self.ups))):
            h = self.normalised(self.up_norms[i], self.ups[i](F.relu(h)))
            if i in self.dropped:
                h = F.dropout(h, self.dropout, self.training or self.always_drop)
            if i:
                h = torch.cat([skips.pop(), h], 1)
        return h.tanh()

    def normalised(self, norm: nn.Module, h: Tensor) -> Tensor:
        # not in a subclass of batch norm, because SyncBatchNorm replaces the modules
        if self.training or not self.by_image or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            return norm(h)
        return F.instance_norm(h, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)


PATCHES = {16: 1, 34: 2, 70: 3, 142: 4, 286: 5}  # receptive field: number of halvings


def require_patch(patch: int, h: int, w: int) -> None:
    """Raise a ValueError unless a `PatchDiscriminator` of ``patch`` pixels can judge images of that size."""
    if patch != 1 and patch not in PATCHES:
        raise UserError(f"patch must be one of 1, {', '.join(map(str, PATCHES))} pixels, got {patch}")
    fitting = [1, *(p for p, halvings in PATCHES.items() if min(h, w) >= 3 * 2**halvings)]
    if patch not in fitting:  # the last convolution would leave nothing
        raise UserError(f"patches of {patch} pixels do not fit images of {h}x{w}: choose from {fitting}")


class PatchDiscriminator(ImageNetwork):
    """Images ``(B, in, H, W)`` to one logit per ``patch`` x ``patch`` pixels, ``(B, 1, H', W')``."""

    def __init__(self, inputs: int, width: int, patch: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "instance"
        if patch == 1:
            layers: list[nn.Module] = [nn.Conv2d(inputs, width, 1), nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(width, 2 * width, 1, bias=bias), norm_layer(norm, 2 * width), nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(2 * width, 1, 1, bias=bias)]
        else:
            halvings = PATCHES[patch]
            channels = [width * min(8, 2**i) for i in range(halvings + 1)]
            layers = [nn.Conv2d(inputs, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            for i in range(halvings):
                stride = 2 if i < halvings - 1 else 1
                layers += [nn.Conv2d(channels[i], channels[i + 1], 4, stride, 1, bias=bias)]
                layers += [norm_layer(norm, channels[i + 1]), nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(channels[-1], 1, 4, 1, 1)]
        self.model = nn.Sequential(*layers)
        self.apply(init_dcgan)
        self.arrange()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(arranged(x))


def authors_names(num_downs: int) -> dict[str, str]:
    """Map the authors' names of the generator's layers, which are nested, to ours."""
    names = {"model.model.0": "downs.0", "model.model.3": "ups.0"}
    prefix = "model.model.1.model"
    for i in range(1, num_downs - 1):
        names |= {f"{prefix}.1": f"downs.{i}", f"{prefix}.2": f"down_norms.{i}"}
        names |= {f"{prefix}.5": f"ups.{i}", f"{prefix}.6": f"up_norms.{i}"}
        prefix += ".3.model"
    last = num_downs - 1
    return names | {f"{prefix}.1": f"downs.{last}", f"{prefix}.3": f"ups.{last}", f"{prefix}.4": f"up_norms.{last}"}
