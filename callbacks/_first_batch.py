"""The moments at which a callback looks at a model."""

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from lit_generative.errors import UserError


class FirstBatch(Callback):
    """Look at the model after the first batch of a validation that is due, and of a test.

    Weights are touched in batch hooks only: averaged weights are swapped in before and out after them. All ranks look.
    ``every_n_epochs`` counts as the Trainer's ``check_val_every_n_epoch`` does; 0: in test only. With ``every_batch``
    all batches are looked at.
    """

    every_n_epochs: int = 1
    every_batch: ClassVar[bool] = False
    logged: Sequence[str] = ()  # names of numbers that may be logged in validation, as ``val/<name>``

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        raise NotImplementedError

    def due(self, trainer: Trainer) -> bool:
        """Whether this validation is to be looked at; those that are run by themselves always are."""
        if trainer.sanity_checking or not self.every_n_epochs:
            return False
        return trainer.state.fn == TrainerFn.VALIDATING or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def require_choosable(self, trainer: Trainer, metric: str, of_test_images: bool) -> None:
        """Raise a ValueError if a callback chooses by ``metric`` of this one, and must not or cannot."""
        n = self.every_n_epochs
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if getattr(callback, "monitor", None) != metric:
                continue
            if of_test_images:
                raise UserError(
                    f"{type(callback).__name__} must not choose by {metric}, a distance to test images: set reference "
                    f"of {type(self).__name__} to train"
                )
            chosen = isinstance(callback, ModelCheckpoint)
            every = callback._every_n_epochs if chosen else trainer.check_val_every_n_epoch or 1
            if not chosen and (not n or every % n) and getattr(callback, "strict", True):
                raise UserError(
                    f"{type(callback).__name__} looks for {metric} in every validation, but it is computed "
                    f"{f'every {n} epochs' if n else 'in test only'}: set every_n_epochs of {type(self).__name__} and "
                    "--trainer.check_val_every_n_epoch to the same number"
                )
            if chosen and (not n or every < 1 or every % n):
                raise UserError(
                    f"checkpoints are chosen by {metric}, which is computed "
                    f"{f'every {n} epochs' if n else 'in test only'}: set --checkpoint.every_n_epochs {n or 1}, "
                    f"and every_n_epochs of {type(self).__name__} to a divisor of it"
                )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 0 and (self.every_batch or batch_idx == 0) and self.due(trainer):
            self.look(trainer, pl_module, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 0 and (self.every_batch or batch_idx == 0):
            self.look(trainer, pl_module, batch)
