"""The moments at which a callback draws one picture of a model."""

from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._logging import log_image
from lit_generative.protocols import require
from lit_generative.randomness import forked_rng


class Picture(Callback):
    """Draw on the first batch of validation, every ``every_n_epochs`` epochs, and of test; the same noise every time.

    Weights are touched in batch hooks only: averaged weights are swapped in before and out after them. All ranks
    draw, one writes; the RNG is forked, so that drawing never changes training.
    """

    name: ClassVar[str]
    protocol: ClassVar[type]

    def __init__(self, every_n_epochs: int = 1, seed: int = 0) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"{type(self).__name__}: every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs, self.seed = every_n_epochs, seed

    def draw(self, model: Any, batch: Any) -> Tensor:
        """The picture, (3, H, W) in [0, 1]."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, self.protocol, self)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        first = batch_idx == dataloader_idx == 0
        if first and not trainer.sanity_checking and trainer.current_epoch % self.every_n_epochs == 0:
            self._log(trainer, pl_module, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == dataloader_idx == 0:
            self._log(trainer, pl_module, batch)

    def _log(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        with forked_rng(self.seed, pl_module.device):
            picture = self.draw(pl_module, batch)
        log_image(trainer, self.name, picture)
