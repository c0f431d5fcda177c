"""What callbacks that look at a model share: when they look, and what they keep."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks._logging import log_image, run_folder
from lit_generative.errors import UserError
from lit_generative.metrics.aggregation import PerImage
from lit_generative.protocols import require
from lit_generative.sampling import Conditions
from lit_generative.utils.rng import forked_rng, mixed_seed, stage_seed


class EvaluationCallback(Callback):
    """Look at the model after the first batch of a validation that is due, and of a test.

    Weights are touched in batch hooks only: averaged weights are swapped in before and out after them. All ranks look.
    ``every_n_epochs`` counts as the Trainer's ``check_val_every_n_epoch`` does; 0: in test only. With ``every_batch``
    all batches are looked at.
    """

    every_n_epochs: int = 1
    every_batch: ClassVar[bool] = False
    logged: Sequence[str] = ()  # names of numbers that may be logged in validation, as ``val/<name>``

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
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
            self.evaluate(trainer, pl_module, batch)

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
            self.evaluate(trainer, pl_module, batch)


class PerImageCallback(EvaluationCallback):
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

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
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


class ImageCallback(EvaluationCallback):
    """Draw an image of what a model makes, in validation and in test, from the same noise every time.

    One rank writes; the RNG is forked, so that drawing never changes training.

    Args:
        every_n_epochs: Epochs from one image to the next.
        seed: Seed of the noise.
    """

    name: ClassVar[str]
    protocol: ClassVar[type]
    samples: ClassVar[bool] = False  # whether images are drawn from the model: with labels where it knows classes
    guidance: float = 0.0

    def __init__(self, every_n_epochs: int = 1, seed: int = 0) -> None:
        if every_n_epochs < 1:
            raise UserError(f"{type(self).__name__}: every_n_epochs must be >= 1, got {every_n_epochs}")
        self.every_n_epochs, self.seed = every_n_epochs, seed

    def draw(self, model: Any, batch: Any) -> Tensor:
        """The image, (3, H, W) in [0, 1]."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, self.protocol, self)
        if self.samples and stage != "predict":
            self.conditions = Conditions(self, pl_module, getattr(trainer, "datamodule", None), self.guidance)

    def describe_test(self) -> str:
        """With which labels samples were drawn, where there are any."""
        return self.conditions.describe() if self.samples else ""

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        with forked_rng(self.seed, pl_module.device):
            image = self.draw(pl_module, batch)
        log_image(trainer, run_folder(trainer), self.name, image)
