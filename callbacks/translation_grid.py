"""Source, translation and target side by side."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._first_batch import FirstBatch
from callbacks._logging import log_image, run_folder
from lit_generative.images import grid
from lit_generative.protocols import Translates, require
from lit_generative.randomness import forked_rng


class TranslationGrid(FirstBatch):
    """The first ``n`` pairs of validation or test, each as a row: source, translation, target.

    Every ``every_n_epochs`` epochs and in the last, if there is a validation then, and in test. Source images of other
    than one or three channels (one-hot labels) are shown as grey levels of the largest.
    """

    every_batch = True

    def __init__(self, n: int = 3, every_n_epochs: int = 10, seed: int = 0) -> None:
        if min(n, every_n_epochs) < 1:
            raise ValueError(f"TranslationGrid: n and every_n_epochs start at 1, got {n} and {every_n_epochs}")
        self.n, self.every_n_epochs, self.seed = n, every_n_epochs, seed
        self._rows: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, Translates, self)

    def due(self, trainer: Trainer) -> bool:
        last = trainer.current_epoch + 1 == trainer.max_epochs and not trainer.sanity_checking
        return last or super().due(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

    def look(self, trainer: Trainer, pl_module: Any, batch: Any) -> None:
        left = self.n - len(self._rows)
        if left == 0:
            return
        x, c = (images[:left] for images in batch)
        with forked_rng(self.seed + len(self._rows), pl_module.device):
            made = pl_module.translate(c)
        self._rows += [torch.stack(row) for row in zip(shown(c, x), made, x, strict=True)]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if self._rows:
            log_image(trainer, run_folder(trainer), "translations", grid(torch.cat(self._rows), 3))


def shown(c: Tensor, x: Tensor) -> Tensor:
    """Source images with the channels of their targets ``x``."""
    if c.shape[1] not in (1, x.shape[1]):
        c = c.argmax(1, keepdim=True) / (c.shape[1] - 1)
    return c.expand_as(x)
