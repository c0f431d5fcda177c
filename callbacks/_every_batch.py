"""Looking at all images of a validation or test, not only those of its first batch."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._first_batch import FirstBatch
from lit_generative.metrics import PerImage
from lit_generative.randomness import forked_rng, mixed_seed, stage_seed


class EveryBatch(FirstBatch):
    """Keep some numbers of every image of a validation that is due, and of a test, and say at the end what they are.

    `keep` looks at the model, batch by batch; `finish` has the numbers of all ranks, in the images' order, and must
    leave weights alone.
    """

    every_batch = True
    seed: int = 0
    numbers: Tensor  # of the images that `keep` is given: their places in the data, whatever the batches and ranks
    _kept: PerImage | None = None
    drawn = ""  # how many images shared a draw of noise

    def keep(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        """Numbers ``(B, d)`` of the images ``x``."""
        raise NotImplementedError

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str, rows: Tensor) -> None:
        """Do something with the numbers ``(N, d)``, on the CPU, on all ranks."""
        raise NotImplementedError

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        x, c = batch
        if self._kept is None:
            self._kept, self._seen = PerImage().to(pl_module.device), 0
            self.drawn = str(len(x)) + (f" x {trainer.world_size}" if trainer.world_size > 1 else "")
        place = self._seen + torch.arange(len(x), device=pl_module.device)
        self.numbers = place * trainer.world_size + trainer.global_rank
        seed = stage_seed(self.seed, trainer.validating)
        with forked_rng(mixed_seed(seed, self._seen, trainer.global_rank), pl_module.device):
            self._kept.update(self.keep(pl_module, x, c), self.numbers)
        self._seen += len(x)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            with forked_rng(stage_seed(self.seed, validating=stage == "val")):
                self.finish(trainer, pl_module, stage, kept.compute())
