"""The only place where image ranges change.

Inside the library an image batch is float32 ``(B, C, H, W)`` in [0, 1], exactly k/255 for 8-bit data. Files and
metrics want uint8; some networks think in [-1, 1].
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from lit_generative.utils.files import atomic_write


def from_uint8(x: Tensor) -> Tensor:
    """Levels 0..255 to [0, 1], exactly k/255; any shape.

    >>> from_uint8(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    return x.to(torch.float32).div_(255)  # division: multiplying by 1/255 misses k/255 for some k


def to_uint8(x: Tensor) -> Tensor:
    """[0, 1] to levels 0..255 by rounding to the nearest; values outside are clamped, any shape.

    >>> to_uint8(torch.tensor([-0.1, 0.2, 0.9999, 3.0]))
    tensor([  0,  51, 255, 255], dtype=torch.uint8)
    """
    return x.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def to_symmetric(x: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], any shape."""
    return x * 2 - 1


def from_symmetric(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], any shape."""
    return (x + 1) / 2


def grid(x: Tensor, columns: int = 8) -> Tensor:
    """Tile images ``(B, C, H, W)`` in [0, 1] row by row into one image, float32 ``(3, H', W')`` in [0, 1]."""
    return make_grid(x.detach().float().cpu().clamp(0, 1), nrow=columns, padding=2, pad_value=0.5)


def save_png(x: Tensor, path: Path) -> None:
    """Write one image ``(C, H, W)`` in [0, 1] as an 8-bit PNG, creating its folder."""
    with atomic_write(path) as file:
        Image.fromarray(to_uint8(x.detach().cpu()).permute(1, 2, 0).squeeze(-1).numpy()).save(file, format="PNG")
