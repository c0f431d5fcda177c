"""Differentiable augmentation of images for discriminators (Zhao et al., 2020, arXiv:2006.10738)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_generative.errors import UserError


def _each(x: Tensor) -> Tensor:
    """A number from U[0, 1) for every image, ``(B, 1, 1, 1)``."""
    return torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)


def color(x: Tensor) -> Tensor:
    """Brightness +-0.5, saturation 0 to 2 and contrast 0.5 to 1.5, of images in [-1, 1]."""
    x = x + _each(x) - 0.5
    grey = x.mean(1, keepdim=True)
    x = torch.lerp(grey, x, 2 * _each(x))
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, 0.5 + _each(x))


def translation(x: Tensor, fraction: float = 0.125) -> Tensor:
    """Moved by up to ``fraction`` of its sides; -1, which is black, comes in."""
    rows, columns = _moved(x, 2, fraction), _moved(x, 3, fraction)
    h, w = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    rows = rows.clamp(-1, h).add(1).view(-1, 1, h, 1).expand(-1, x.shape[1], -1, w + 2)
    columns = columns.clamp(-1, w).add(1).view(-1, 1, 1, w).expand(-1, x.shape[1], h, -1)
    return padded.gather(2, rows).gather(3, columns)


def _moved(x: Tensor, dim: int, fraction: float) -> Tensor:
    """Where each row or column comes from, int64 ``(B, size)``."""
    size = x.shape[dim]
    most = int(size * fraction + 0.5)
    shift = torch.randint(-most, most + 1, (len(x), 1), device=x.device)
    return torch.arange(size, device=x.device) + shift


def cutout(x: Tensor, fraction: float = 0.5) -> Tensor:
    """A rectangle of ``fraction`` of the sides is 0, its centre anywhere."""
    inside = torch.ones(1, dtype=torch.bool, device=x.device)
    for dim, shape in ((2, (-1, 1, x.shape[2], 1)), (3, (-1, 1, 1, x.shape[3]))):
        size = x.shape[dim]
        length = int(size * fraction + 0.5)
        first = torch.randint(0, size + 1 - length % 2, (len(x), 1), device=x.device) - length // 2
        at = torch.arange(size, device=x.device) - first
        inside = inside & ((at >= 0) & (at < length)).view(shape)
    return x.masked_fill(inside, 0.0)


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {"color": color, "translation": translation, "cutout": cutout}


def require_augmentations(names: Sequence[str]) -> None:
    """Raise a ValueError if there is no augmentation of one of these names."""
    if unknown := [name for name in names if name not in AUGMENTATIONS]:
        raise UserError(f"there is no augmentation {unknown[0]}: choose from {', '.join(AUGMENTATIONS)}")


def augmented(x: Tensor, names: Sequence[str]) -> Tensor:
    """Images ``(B, C, H, W)`` in [-1, 1] after the augmentations of these names, drawn for each image."""
    for name in names:
        x = AUGMENTATIONS[name](x)
    return x
