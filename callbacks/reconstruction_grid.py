"""Images above their reconstructions."""

from typing import Any

import torch
from torch import Tensor

from callbacks._picture import Picture
from lit_generative.images import grid
from lit_generative.protocols import Reconstructs


class ReconstructionGrid(Picture):
    """The first ``n`` images of the first batch: a row of originals, a row of their reconstructions, and so on."""

    name, protocol = "reconstructions", Reconstructs

    def __init__(self, n: int = 32, columns: int = 8, every_n_epochs: int = 1, seed: int = 0) -> None:
        super().__init__(every_n_epochs, seed)
        if min(n, columns) < 1:
            raise ValueError(f"{type(self).__name__}: n and columns must be at least 1, got {n} and {columns}")
        self.n, self.columns = n, columns

    def draw(self, model: Any, batch: Any) -> Tensor:
        x, c = batch[0][: self.n], batch[1][: self.n]
        blank = torch.full_like(x[:1], 0.5).expand(-len(x) % self.columns, *x.shape[1:])  # fills the last row
        rows = (torch.cat([images, blank]).split(self.columns) for images in (x, model.reconstruct(x, c)))
        return grid(torch.cat([torch.cat(pair) for pair in zip(*rows, strict=True)]), self.columns)
