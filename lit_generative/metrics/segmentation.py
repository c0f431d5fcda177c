"""Scores of label maps (Isola et al., 2017, Section 4)."""

import torch
from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.utils.precision import exact


def nearest_colour(images: Tensor, palette: Tensor) -> Tensor:
    """The index in ``palette`` ``(K, 3)`` of the colour nearest to each pixel, ``(B, 3, H, W)`` to ``(B, H, W)``.

    Both are in [0, 1].
    """
    pixels = images.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cdist(pixels, palette.to(pixels)).argmin(1).view(len(images), *images.shape[2:])


def confusion(truth: Tensor, found: Tensor, classes: int) -> Tensor:
    """Confusion matrix of every image, true classes in rows and predicted ones in columns, float64 ``(B, K, K)``.

    ``truth`` and ``found`` are ``(B, H, W)`` int64; pixels whose truth is not in 0..K-1 are ignored.

    Raises:
        ValueError: ``found`` is not in 0..K-1.
    """
    if found.min() < 0 or found.max() >= classes:
        raise UserError(f"predicted classes must be in 0..{classes - 1}, got {int(found.min())} to {int(found.max())}")
    counted = (truth >= 0) & (truth < classes)
    pairs = torch.where(counted, truth * classes + found, classes**2)
    counts = [torch.bincount(image.flatten(), minlength=classes**2 + 1)[:-1] for image in pairs]
    return exact(torch.stack(counts).view(-1, classes, classes))


def label_scores(confusion: Tensor) -> dict[str, float]:
    """``pixel_accuracy``, and means over classes ``class_accuracy`` and ``class_iou``, of a matrix ``(K, K)``.

    The accuracy is over the classes that occur; the IoU also over those that were only predicted, which have 0, as in
    the official script of Cityscapes.
    """
    right, there, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    union = there + found - right
    return {
        "pixel_accuracy": float(right.sum() / confusion.sum()),
        "class_accuracy": float((right / there)[there > 0].mean()),
        "class_iou": float((right / union)[union > 0].mean()),
    }
