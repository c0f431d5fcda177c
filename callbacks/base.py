"""What callbacks that evaluate a model share: when they do, and what they collect."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks._logging import log_image, run_folder
from lit_generative.errors import UserError, require_at_least
from lit_generative.metrics.aggregation import PerImage
from lit_generative.protocols import require
from lit_generative.sampling import Conditions
from lit_generative.utils.rng import forked_rng, mixed_seed, stage_seed


def datamodule_of(trainer: Trainer) -> Any:
    """The data module of a run; None where loaders were given."""
    return getattr(trainer, "datamodule", None)


class EvaluationCallback(Callback):
    """Evaluate the model after the first batch of a validation that is due, and of a test.

    `evaluate` is called in batch hooks, on all ranks: averaged weights are swapped in before these and out after them.
    With ``every_batch`` it is called after every batch. `finish` is called once at the end, and must not use weights.

    Args:
        every_n_epochs: Epochs from one evaluation to the next, as the Trainer's ``check_val_every_n_epoch`` counts
            them; 0: in test only.
        seed: Seed of everything that is drawn.

    Raises:
        TypeError: The model does not follow ``protocol``.
    """

    protocol: ClassVar[Any]  # the class of what a model must be able to do
    every_batch: ClassVar[bool] = False
    logged: Sequence[str] = ()  # names of numbers that may be logged in validation, as ``val/<name>``

    def __init__(self, every_n_epochs: int = 1, seed: int = 0) -> None:
        require_at_least(self, 0, every_n_epochs=every_n_epochs, seed=seed)
        self.every_n_epochs, self.seed = every_n_epochs, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, self.protocol, self)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        raise NotImplementedError

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log what was found; ``stage`` is ``val`` or ``test``."""

    def due(self, trainer: Trainer) -> bool:
        """Whether to evaluate in this validation; always where it is not part of a training."""
        if trainer.sanity_checking or not self.every_n_epochs:
            return False
        return trainer.state.fn == TrainerFn.VALIDATING or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def log_numbers(self, pl_module: LightningModule, stage: str, numbers: Mapping[str, Any]) -> None:
        """Log ``<stage>/<name>``, where all ranks have the same numbers: sync_dist only avoids Lightning's warning."""
        pl_module.log_dict({f"{stage}/{name}": value for name, value in numbers.items()}, sync_dist=True)

    def require_monitorable(self, trainer: Trainer, metric: str, of_test_images: bool) -> None:
        """Raise a `UserError` if a callback that monitors ``metric``, which this one logs, must not or cannot."""
        n, name = self.every_n_epochs, type(self).__name__
        how_often = f"every {n} epochs" if n else "in test only"
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if getattr(callback, "monitor", None) != metric:
                continue
            if of_test_images:
                raise UserError(
                    f"{type(callback).__name__} must not monitor {metric}, a distance to test images: set reference of "
                    f"{name} to train"
                )
            if isinstance(callback, ModelCheckpoint):
                every = callback._every_n_epochs
                if not n or every < 1 or every % n:
                    raise UserError(
                        f"checkpoints are chosen by {metric}, which is computed {how_often}: set "
                        f"--checkpoint.every_n_epochs {n or 1}, and every_n_epochs of {name} to a divisor of it"
                    )
            elif getattr(callback, "strict", True) and (not n or (trainer.check_val_every_n_epoch or 1) % n):
                raise UserError(
                    f"{type(callback).__name__} expects {metric} in every validation, but it is computed {how_often}: "
                    f"set every_n_epochs of {name} and --trainer.check_val_every_n_epoch to the same number"
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
        if dataloader_idx == 0 and (self.every_batch or batch_idx == 0) and (trainer.testing or self.due(trainer)):
            self.evaluate(trainer, pl_module, batch)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.due(trainer):
            self.finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish(trainer, pl_module, "test")


class PerImageCallback(EvaluationCallback):
    """Measure every image of a validation that is due, and of a test, and summarize what was measured.

    `measure` has the model and a batch; `summarize` has the numbers of all ranks, in the images' order.
    """

    every_batch = True
    indices: Tensor  # of the images that `measure` is given, in the data, whatever the batches and ranks
    images_per_draw = ""  # how many images share a draw of noise
    _measured: PerImage | None = None

    def measure(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        """Numbers ``(B, d)`` of the images ``x``."""
        raise NotImplementedError

    def summarize(self, trainer: Trainer, pl_module: LightningModule, stage: str, rows: Tensor) -> None:
        """Log or draw the numbers ``(N, d)``, which are on the CPU of every rank."""
        raise NotImplementedError

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        x, c = batch
        if self._measured is None:
            self._measured, self._seen = PerImage().to(pl_module.device), 0
            self.images_per_draw = str(len(x)) + (f" x {trainer.world_size}" if trainer.world_size > 1 else "")
        position = self._seen + torch.arange(len(x), device=pl_module.device)
        self.indices = position * trainer.world_size + trainer.global_rank
        seed = stage_seed(self.seed, trainer.validating)
        with forked_rng(mixed_seed(seed, self._seen, trainer.global_rank), pl_module.device):
            self._measured.update(self.measure(pl_module, x, c), self.indices)
        self._seen += len(x)

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._measured is not None:
            measured, self._measured = self._measured, None
            with forked_rng(stage_seed(self.seed, validating=stage == "val")):
                self.summarize(trainer, pl_module, stage, measured.compute())


class ImageCallback(EvaluationCallback):
    """Draw an image of what a model makes, in validation and in test, from the same noise every time.

    Args:
        every_n_epochs: Epochs from one image to the next; 0: in test only.
        seed: Seed of the noise.
    """

    name: ClassVar[str]
    samples: ClassVar[bool] = False  # whether images are drawn from the model: with labels where it knows classes
    guidance: float = 0.0

    def draw(self, model: Any, batch: Any) -> Tensor:
        """The image, (3, H, W) in [0, 1]."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.samples and stage != "predict":
            self.conditions = Conditions(self, pl_module, datamodule_of(trainer), self.guidance)

    def describe_test(self) -> str:
        """With which labels samples were drawn, where there are any."""
        return self.conditions.describe() if self.samples else ""

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        with forked_rng(self.seed, pl_module.device):
            image = self.draw(pl_module, batch)
        log_image(trainer, run_folder(trainer), self.name, image)
