"""The first images of an evaluation, whatever the size of its batches."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks._logging import log_image, run_folder
from callbacks.base import ImageCallback
from lit_generative.errors import UserError
from lit_generative.images import grid
from lit_generative.utils.rng import forked_rng


class FirstImages(ImageCallback):
    """A row for each of the first ``n`` images of a validation that is due, and of a test.

    `rows` looks at the model, in batch hooks, a part of a batch at a time until there are ``n``; `draw_rows` puts them
    together when the evaluation ends. A message says so, once, if it had fewer.
    """

    every_batch = True
    what = "images"  # those that are shown, in words
    _told = False

    def __init__(self, n: int, **image: Any) -> None:
        super().__init__(**image)
        if n < 1:
            raise UserError(f"{type(self).__name__}: n must be >= 1, got {n}")
        self.n = n
        self._rows: list[Tensor] = []

    def wanted(self, c: Tensor) -> Tensor:
        """Which images of a batch may be shown, by their ``c``; bool ``(B,)``."""
        return torch.ones(len(c), dtype=torch.bool, device=c.device)

    def rows(self, model: LightningModule, x: Tensor, c: Tensor) -> Tensor:
        """The row of each image, ``(B, columns, C, H, W)`` in [0, 1]."""
        raise NotImplementedError

    def draw_rows(self, rows: Tensor) -> Tensor:
        """The image ``(3, H', W')`` in [0, 1] of rows ``(N, columns, C, H, W)``."""
        return grid(rows.flatten(0, 1), rows.shape[1])

    @property
    def shown(self) -> int:
        """How many of the images of this evaluation have their row."""
        return sum(map(len, self._rows))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: tuple[Tensor, Tensor]) -> None:
        missing = self.n - self.shown
        if not missing:
            return
        wanted = self.wanted(batch[1])
        x, c = (part[wanted][:missing] for part in batch)
        if len(x):
            with forked_rng(self.seed + self.shown, pl_module.device):
                self._rows.append(self.rows(pl_module, x, c).detach().cpu())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.due(trainer):
            self._finish(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        if self.shown < self.n and not self._told:
            rank_zero_info(f"{type(self).__name__} was to show {self.n} {self.what}, and there were {self.shown}")
            self._told = True
        if self._rows:
            log_image(trainer, run_folder(trainer), self.name, self.draw_rows(torch.cat(self._rows)))
