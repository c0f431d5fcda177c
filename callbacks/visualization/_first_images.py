"""The first images of an evaluation, whatever the size of its batches."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks._logging import log_image, run_folder
from callbacks.base import ImageCallback
from lit_generative.errors import require_at_least
from lit_generative.images import grid
from lit_generative.utils.rng import forked_rng


class FirstImages(ImageCallback):
    """An image with a row for each of the first ``n`` images of a validation that is due, and of a test.

    `rows` has the model and part of a batch, until there are ``n`` rows; `draw_rows` joins them when the evaluation
    ends. If there were fewer, a message says so, once.
    """

    every_batch = True
    what: str = "images"  # what the rows are of, in messages
    _warned = False

    def __init__(self, n: int, **image: Any) -> None:
        super().__init__(**image)
        require_at_least(self, 1, n=n)
        self.n = n
        self._rows: list[Tensor] = []

    def wanted(self, c: Tensor) -> Tensor:
        """Which images of a batch may be shown, by their ``c``; bool ``(B,)``."""
        return torch.ones(len(c), dtype=torch.bool, device=c.device)

    def rows(self, model: LightningModule, x: Tensor, c: Tensor) -> Tensor:
        """The row of each image, ``(B, columns, C, H, W)`` in [0, 1]."""
        raise NotImplementedError

    def draw_rows(self, rows: Tensor) -> Tensor:
        """Rows ``(N, columns, C, H, W)`` as one image ``(3, H', W')`` in [0, 1]."""
        return grid(rows.flatten(0, 1), rows.shape[1])

    @property
    def shown(self) -> int:
        """How many rows this evaluation has so far."""
        return sum(map(len, self._rows))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

    on_test_epoch_start = on_validation_epoch_start

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: tuple[Tensor, Tensor]) -> None:
        missing = self.n - self.shown
        if not missing:
            return
        wanted = self.wanted(batch[1])
        x, c = (part[wanted][:missing] for part in batch)
        if len(x):
            with forked_rng(self.seed + self.shown, pl_module.device):
                self._rows.append(self.rows(pl_module, x, c).detach().cpu())

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.shown < self.n and not self._warned:
            rank_zero_info(f"{type(self).__name__} shows {self.shown} {self.what}, not {self.n}: the data have no more")
            self._warned = True
        if self._rows:
            log_image(trainer, run_folder(trainer), self.name, self.draw_rows(torch.cat(self._rows)))
