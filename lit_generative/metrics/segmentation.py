"""How much of a scene is where it should be: scores of label maps (Isola et al., 2017, Section 4)."""

import torch
from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.utils.precision import exact


def nearest_colour(images: Tensor, palette: Tensor) -> Tensor:
    """The row of the ``palette`` ``(K, 3)`` that is nearest to each pixel of images ``(B, 3, H, W)``, ``(B, H, W)``.

    Both in [0, 1].
    """
    pixels = images.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cdist(pixels, palette.to(pixels)).argmin(1).view(len(images), *images.shape[2:])


def confusion(truth: Tensor, found: Tensor, classes: int) -> Tensor:
    """Pixels of each class (rows) that were taken for each (columns), of every image, ``(B, K, K)`` float64.

    ``truth`` and ``found`` are ``(B, H, W)`` int64; pixels whose truth is not in 0..K-1 do not count.

    Raises:
        ValueError: Something else was found than 0..K-1.
    """
    if found.min() < 0 or found.max() >= classes:
        raise UserError(f"there are {classes} classes, but {int(found.min())} to {int(found.max())} were found")
    counted = (truth >= 0) & (truth < classes)
    pairs = torch.where(counted, truth * classes + found, classes**2)
    counts = [torch.bincount(image.flatten(), minlength=classes**2 + 1)[:-1] for image in pairs]
    return exact(torch.stack(counts).view(-1, classes, classes))


def label_scores(confusion: Tensor) -> dict[str, float]:
    """``pixel_accuracy``, and means over classes: ``class_accuracy``, ``class_iou``; of (K, K).

    The accuracy is over the classes that occur, the IoU also over those that only were found, as in the official script
    of Cityscapes: of these it is 0.
    """
    right, there, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    union = there + found - right
    return {
        "pixel_accuracy": float(right.sum() / confusion.sum()),
        "class_accuracy": float((right / there)[there > 0].mean()),
        "class_iou": float((right / union)[union > 0].mean()),
    }
