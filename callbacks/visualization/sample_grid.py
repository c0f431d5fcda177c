"""A grid of samples, drawn from the same noise every time so that grids can be compared."""

from typing import Any

import torch
from torch import Tensor

from callbacks.base import ImageCallback
from lit_generative.errors import require_at_least
from lit_generative.images import grid
from lit_generative.protocols import Samples


class SampleGrid(ImageCallback):
    """A grid of samples; of a class-conditional model a row for each class, of up to 20.

    Args:
        n: Samples of a model without classes.
        columns: Samples in a row.
        guidance: Guidance of a class-conditional model's samples towards their labels.
        image: Arguments of `ImageCallback`.
    """

    name, protocol, samples = "samples", Samples, True

    def __init__(self, n: int = 64, columns: int = 8, guidance: float = 0.0, **image: Any) -> None:
        super().__init__(**image)
        require_at_least(self, 1, n=n, columns=columns)
        self.n, self.columns, self.guidance = n, columns, guidance

    def draw(self, model: Any, batch: Any) -> Tensor:
        rows = min(20, getattr(model, "classes", 0))
        c = torch.arange(rows, device=model.device).repeat_interleave(self.columns) if rows else None
        return grid(self.conditions.draw(model, len(c) if c is not None else self.n, c), self.columns)

    def describe_test(self) -> str:
        """The guidance, where there are labels."""
        return self.conditions.guided
