r"""Affine coupling layers, the bijections of RealNVP (Dinh et al., 2017, arXiv:1605.08803), and their masks."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_generative.errors import UserError
from lit_generative.flows.bijections import ActNorm, Bijection, Permute, RunningBatchNorm, per_channel
from lit_generative.nn.mlp import mlp


class Halves(nn.Module):
    """Keep the first half of the channels (of the entries, for vectors) or the second; the first is larger if odd."""

    def __init__(self, keep_second: bool = False) -> None:
        super().__init__()
        self.keep_second = keep_second

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The part that is kept, and the part that changes."""
        first, second = x.chunk(2, 1)
        return (second, first) if self.keep_second else (first, second)

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([changed, kept] if self.keep_second else [kept, changed], 1)

    def sizes(self, channels: int) -> tuple[int, int]:
        """Channels of the two parts."""
        larger, smaller = (channels + 1) // 2, channels // 2
        return (smaller, larger) if self.keep_second else (larger, smaller)

    def restrict(self, parameters: Tensor) -> Tensor:
        """The conditioner's output where the input changes, zeros elsewhere."""
        return parameters


class Mask(nn.Module):
    """Keep the entries where ``b`` is 1; both parts have the shape of the input, and zeros where the other part is.

    ``b`` broadcasts to the images or vectors: ``(1, H, W)``, ``(C, H, W)`` or ``(D,)``.
    """

    kept: Tensor

    def __init__(self, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", b.float(), persistent=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.kept, x * (1 - self.kept)

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        return kept + changed

    def sizes(self, channels: int) -> tuple[int, int]:
        return channels, channels

    def restrict(self, parameters: Tensor) -> Tensor:
        return parameters * (1 - self.kept)


def checkerboard(height: int, width: int, keep_odd: bool = False) -> Mask:
    """The mask of Fig. 3: keep the pixels whose coordinates have an even sum, or an odd one."""
    odd = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    return Mask((odd if keep_odd else 1 - odd)[None])


class Coupling(Bijection):
    r"""Affine coupling: scale and shift one part by functions of the other (Eq. 4, 5 and 9).

        z_kept = x_kept,    z_changed = x_changed * exp(s(x_kept)) + t(x_kept)

    The log-scale is s = a tanh(raw / a), bounded by a learned ``a`` per channel that starts at 1.

    Args:
        mask: Which part is kept: `Halves` or a `Mask`.
        conditioner: Any network from the kept part, ``(B, kept, ...)``, to raw log-scales and shifts,
            ``(B, 2 * changed, ...)``, with the channels of ``mask.sizes(channels)``. If its last layer is zero, the
            coupling starts as the identity.
        channels: Channels of the input, or the dimension of vectors.
    """

    def __init__(self, mask: Halves | Mask, conditioner: nn.Module, channels: int) -> None:
        super().__init__()
        self.mask, self.conditioner = mask, conditioner
        self.log_bound = nn.Parameter(torch.zeros(mask.sizes(channels)[1]))

    def scale_and_shift(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        h = self.conditioner(kept if context is None else torch.cat([kept, context], 1))
        raw, t = h.chunk(2, 1)  # under autocast half precision, promoted to float32 below
        a = per_channel(self.log_bound.exp(), raw)
        return self.mask.restrict(a * torch.tanh(raw / a)), self.mask.restrict(t)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The conditioner receives ``context``, images ``(B, C', H, W)`` or vectors, together with the kept part."""
        kept, changed = self.mask.split(x)
        s, t = self.scale_and_shift(kept, context)
        return self.mask.merge(kept, changed * s.exp() + t), s.flatten(1).sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, changed = self.mask.split(z)
        s, t = self.scale_and_shift(kept, context)
        return self.mask.merge(kept, (changed - t) * (-s).exp()), -s.flatten(1).sum(1)


NORMS: dict[str, tuple[Any, ...]] = {"batch": (RunningBatchNorm,), "act": (ActNorm,), "none": ()}


def dense(dims: int, couplings: int, width: int, depth: int, norm: str, alternate: bool) -> list[Bijection]:
    """Couplings of vectors ``(B, dims)`` whose conditioners have ``depth`` hidden layers of ``width`` units.

    They keep the entries of even index, or with ``alternate`` those of even and odd index in turn.
    """
    if dims < 2:
        raise UserError(f"a coupling needs vectors of dimension >= 2, got {dims}")
    layers: list[Bijection] = [Permute(torch.cat([torch.arange(0, dims, 2), torch.arange(1, dims, 2)]))]
    for i in range(couplings):
        mask = Halves(keep_second=alternate and i % 2 == 1)
        kept, changed = mask.sizes(dims)
        conditioner = mlp([kept, *[width] * depth, 2 * changed], nn.ReLU, zero_last=True)
        layers += [*(normalise(dims) for normalise in NORMS[norm]), Coupling(mask, conditioner, dims)]
    return layers
