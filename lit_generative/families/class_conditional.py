"""Labels as conditions, and how to tell a user which labels those may be."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_generative.errors import UserError, UserTypeError
from lit_generative.generative_model import GenerativeModel
from lit_generative.training.batches import describe


class ClassConditional(GenerativeModel):
    """A model of images with labels 0 to ``classes - 1``; the label ``classes`` stands for none, as None does.

    Training hides some labels, so that one network learns p(x|c) and p(x): what is asked without a label is of p(x).

    Args:
        classes: Number of labels to condition on; 0: none, and labels are ignored.
        label_dropout: Fraction of labels that training hides, so that the model also learns p(x), which guidance
            needs (Ho & Salimans, 2022, Algorithm 1).
        rest: Arguments of the other class, of a model with two parents (``class M(ClassConditional, DiffusionModel)``).
    """

    def __init__(self, classes: int = 0, label_dropout: float = 0.1, **rest: Any) -> None:
        super().__init__(**rest)
        if classes < 0 or not (0 <= label_dropout <= 1 and (label_dropout or not classes)):
            raise UserError(
                "classes must be >= 0, label_dropout in [0, 1], and > 0 with classes (else samples without a "
                f"label come from what was never trained); got {classes}, {label_dropout}"
            )
        self.classes, self.label_dropout = classes, label_dropout
        self.given = ", given the class" if classes else ""

    def hide_labels(self, c: Tensor) -> Tensor:
        if not self.classes:
            return c
        return c.masked_fill(torch.rand(len(c), device=c.device) < self.label_dropout, self.classes)

    def labels_or_none(self, like: Tensor, c: Tensor | None) -> Tensor | None:
        """What a network with an embedding takes as labels ``(B,)`` of the entries of ``like`` ``(B, ...)``."""
        if not self.classes:
            return None
        return torch.full(like.shape[:1], self.classes, device=like.device) if c is None else c

    def one_hot(self, c: Tensor | None, like: Tensor) -> Tensor:
        """Labels as vectors ``(B, classes)`` of the dtype of ``like`` ``(B, ...)``, 0 where there is none."""
        c = self.labels_or_none(like, c)
        return like.new_zeros(len(like), 0) if c is None else F.one_hot(c, self.classes + 1)[:, :-1].to(like)

    def with_labels(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Vectors ``(..., B, D)``, each followed by its label's one-hot vector, ``(..., B, D + classes)``."""
        if not self.classes:
            return z
        own = self.one_hot(c, z[(0,) * (z.ndim - 2)])
        return torch.cat([z, own.expand(*z.shape[:-1], -1)], -1)

    def require_fitting(self, data: Any) -> None:
        super().require_fitting(data)
        # a folder knows its classes once it was read
        known = len(data.classes) if hasattr(data, "classes") else getattr(data, "num_classes", 0)
        if self.classes and known > self.classes:
            raise UserError(
                f"{type(self).__name__} is built for {self.classes} classes, but {type(data).__name__} has {known}: "
                f"set --model.classes {known}"
            )

    def take_condition(self, c: Any, x: Tensor, first: bool) -> Tensor:
        """Labels ``(B,)`` int64; of a model without classes see `TakesBatches`."""
        if not self.classes:
            return super().take_condition(c, x, first)
        # later ones are looked at where that does not wait for the device
        self.require_classes(c, len(x), look=first or x.device.type == "cpu")
        return c.long()

    def require_labels(self, n: int, c: Tensor | None, guidance: float = 0.0) -> None:
        """Raise a TypeError or ValueError if ``n`` images cannot have these labels, or this guidance."""
        if guidance < 0 or (guidance and (c is None or not self.classes)):
            raise UserError("guidance must be >= 0, and > 0 only with labels c and a model with classes")
        if self.classes and c is not None:
            self.require_classes(c, n, look=True)

    def require_classes(self, c: Any, n: int, look: bool) -> None:
        """Raise a TypeError or ValueError unless ``c`` holds ``n`` labels; ``look`` at their values, too."""
        expected = f"{self._place()}: c must hold a label from 0 to {self.classes - 1} for each of {n} images"
        if not isinstance(c, Tensor):
            raise UserTypeError(f"{expected}, got {describe(c)}: give (x, c), or build the model with classes=0")
        if c.shape != (n,):
            remedy = "c.squeeze(1)" if c.shape == (n, 1) else "c.argmax(1)" if c.ndim == 2 else "one each"
            raise UserError(f"{expected}, got {describe(c)}: give {remedy}")
        if c.is_floating_point() or c.is_complex():
            raise UserTypeError(f"{expected}, got {describe(c)}: give c.long()")
        if look and n and not ((c >= 0) & (c < self.classes)).all():
            low, high = int(c.min()), int(c.max())
            remedy = "count from 0" if low == 1 and high == self.classes else f"set classes to {high + 1} or more"
            raise UserError(f"{expected}, got {low} to {high}: {remedy if low >= 0 else 'remove those below 0'}")
