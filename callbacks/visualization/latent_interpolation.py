"""What lies between two samples."""

from typing import Any

from torch import Tensor

from callbacks.base import ImageCallback
from lit_generative.errors import UserError
from lit_generative.images import grid
from lit_generative.protocols import Interpolates


class LatentInterpolation(ImageCallback):
    """Rows of images on the way from one sample to another.

    Args:
        n: Rows.
        steps: Images in a row.
        image: Arguments of `ImageCallback`.
    """

    name, protocol, samples = "interpolations", Interpolates, True

    def __init__(self, n: int = 8, steps: int = 10, **image: Any) -> None:
        super().__init__(**image)
        if n < 1 or steps < 2:
            raise UserError(f"{type(self).__name__}: n must be >= 1, steps >= 2; got {n} and {steps}")
        self.n, self.steps = n, steps

    def draw(self, model: Any, batch: Any) -> Tensor:
        c = self.conditions.labels(self.n, model.device)
        return grid(model.interpolate(self.n, self.steps, c), self.steps)
