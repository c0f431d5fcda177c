"""Images above their reconstructions."""

from typing import Any

import torch
from torch import Tensor

from callbacks.visualization._first_images import FirstImages
from lit_generative.errors import require_at_least
from lit_generative.images import grid
from lit_generative.protocols import Reconstructs


class ReconstructionGrid(FirstImages):
    """The first images: a row of originals, a row of their reconstructions, and so on.

    Args:
        n: Images.
        columns: Images in a row.
        image: Arguments of `ImageCallback`.
    """

    name, protocol = "reconstructions", Reconstructs

    def __init__(self, n: int = 32, columns: int = 8, **image: Any) -> None:
        super().__init__(n, **image)
        require_at_least(self, 1, columns=columns)
        self.columns = columns

    def rows(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        return torch.stack([x, model.reconstruct(x, c)], 1)

    def draw_rows(self, rows: Tensor) -> Tensor:
        blank = torch.full_like(rows[:1], 0.5).expand(-len(rows) % self.columns, *rows.shape[1:])  # fills the last row
        lines = torch.cat([rows, blank]).unflatten(0, (-1, self.columns)).transpose(1, 2)  # (lines, 2, columns, ...)
        return grid(lines.flatten(0, 2), self.columns)
