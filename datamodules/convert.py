"""Conversion of 8-bit images of one data set to the shape of another."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import resize as resize_bilinear
from torchvision.transforms.v2.functional import rgb_to_grayscale

Shape = tuple[int, int, int]


def convert(images: Tensor, shape: Shape, how: Literal["pad", "resize"]) -> Tensor:
    """Convert uint8 images ``(N, C, H, W)`` to ``(N, *shape)``: grey to RGB or RGB to grey, then padded or resized.

    Resizing is bilinear with antialiasing, and is also used by ``how="pad"`` for images larger than ``shape``.
    """
    channels, height, width = shape
    if images.shape[1] != channels:
        images = images.expand(-1, 3, -1, -1) if channels == 3 else rgb_to_grayscale(images)
    h, w = images.shape[-2:]
    if (h, w) == (height, width):
        return images
    if how == "resize" or h > height or w > width:
        return torch.cat([resize_bilinear(chunk, [height, width], antialias=True) for chunk in images.split(1000)])
    top, left = (height - h) // 2, (width - w) // 2
    return pad(images, (left, width - w - left, top, height - h - top))


def describe(before: tuple[int, ...], after: Shape, how: Literal["pad", "resize"]) -> str:
    """What `convert` does, in words; empty if nothing."""
    changes = []
    if before[0] != after[0]:
        changes.append("grey repeated to RGB" if after[0] == 3 else "RGB weighted to grey")
    if before[1:] != after[1:]:
        padded = how == "pad" and before[1] <= after[1] and before[2] <= after[2]
        changes.append(f"{'padded' if padded else 'resized'} from {before[1]}x{before[2]}")
    return ", ".join(changes)
