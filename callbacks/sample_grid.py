"""A grid of samples, drawn from the same noise every time so that the pictures can be compared."""

from typing import Any

from torch import Tensor

from callbacks._picture import Picture
from lit_generative.images import grid
from lit_generative.protocols import Samples
from lit_generative.sampling import draw


class SampleGrid(Picture):
    """``n`` samples, ``columns`` to a row."""

    name, protocol = "samples", Samples

    def __init__(self, n: int = 64, columns: int = 8, every_n_epochs: int = 1, seed: int = 0) -> None:
        super().__init__(every_n_epochs, seed)
        if min(n, columns) < 1:
            raise ValueError(f"{type(self).__name__}: n and columns must be at least 1, got {n} and {columns}")
        self.n, self.columns = n, columns

    def draw(self, model: Any, batch: Any) -> Tensor:
        return grid(draw(model, self.n), self.columns)
