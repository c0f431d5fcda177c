"""Interpolations between samples."""

from typing import Any

from torch import Tensor

from callbacks.base import ImageCallback
from lit_generative.errors import require_at_least
from lit_generative.images import grid
from lit_generative.protocols import Interpolates


class LatentInterpolation(ImageCallback):
    """Rows of images that interpolate between two samples.

    Args:
        n: Rows.
        steps: Images in a row.
        image: Arguments of `ImageCallback`.
    """

    name, protocol, samples = "interpolations", Interpolates, True

    def __init__(self, n: int = 8, steps: int = 10, **image: Any) -> None:
        super().__init__(**image)
        require_at_least(self, 1, n=n)
        require_at_least(self, 2, steps=steps)
        self.n, self.steps = n, steps

    def draw(self, model: Any, batch: Any) -> Tensor:
        c = self.conditions.labels(self.n, model.device)
        return grid(model.interpolate(self.n, self.steps, c), self.steps)
