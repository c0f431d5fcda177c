"""How far a run is."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks.reporting._lines import numbers, place, total_steps
from callbacks.reporting._screen import Bar, Lines, Pace, screen
from lit_generative.training.log import TrainLog
from lit_generative.training.progress import progress


class Progress(ProgressBar):
    """In a terminal one bar for the whole run; elsewhere a plain line for every tenth of it, and every 30 seconds.

    Beside it stand the epoch, the losses, images a second and the time that is left. Losses are those of the curves'
    last line, before the first the means so far. Of a run without an end, the bar is the epoch's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._speaks = True
        self._screen: Bar | Lines | None = None  # None: nothing is shown
        self._losses: tuple[Any, str] = None, ""  # as the model gave them, and in words

    def disable(self) -> None:
        self._speaks = False

    def enable(self) -> None:
        self._speaks = True

    def _begin(self, name: str, total: float, done: float) -> None:
        if self._speaks:
            self._pace, self._screen = Pace(total, done), screen(name, done / total)

    def _end(self) -> None:
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    # -- training ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = None, ""
        self._begin(place(trainer), 1.0 if _has_end(trainer) else math.inf, _done(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._screen is not None:
            self._pace.pause()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._screen is None:
            return
        self._pace.batches += 1
        if not self._screen.is_due(_done(trainer)):
            return
        latest = pl_module.latest_losses() if isinstance(pl_module, TrainLog) else trainer.progress_bar_metrics
        if latest is not self._losses[0]:  # reading the same again would wait for the device again
            names = sorted(latest, key=lambda name: name != "loss")
            self._losses = latest, "  ".join(numbers({_short(name): float(latest[name]) for name in names}))
        limits = [c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]
        left = min((limit for limit in limits if limit is not None), default=math.inf)
        speed = self._pace.words(_done(trainer), _images(batch) * trainer.world_size, left)
        self._screen.show(place(trainer), _share(trainer), f"{self._losses[1]}  {speed}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    # -- validation, test and prediction -----------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, "validation", trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, "test", trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, "prediction", trainer.num_predict_batches)

    def _begin_evaluation(self, trainer: Trainer, name: str, batches: list[int | float]) -> None:
        self._name, self._seen, self._batches = name, 0, sum(batches)
        if trainer.state.fn != TrainerFn.FITTING:
            self._begin(name, self._batches, 0)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._screen is None:  # as in the check before training
            return
        self._seen += 1
        self._pace.batches += 1
        fits = trainer.state.fn == TrainerFn.FITTING
        if not self._screen.is_due(_done(trainer) if fits else self._seen / self._batches):
            return
        total = f"{self._batches:,}"
        words = f"{self._seen:>{len(total)},}/{total}"
        if fits:
            self._screen.show(place(trainer), _share(trainer), f"validation {words}")
        else:
            speed = self._pace.words(self._seen, _images(batch) * trainer.world_size)
            self._screen.show(self._name, self._seen / self._batches, f"{words}  {speed}")

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._end()
        elif self._screen is not None:
            self._pace.pause()  # it counts for the time that is left, and not for the speed

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    on_predict_end = on_test_end


def _has_end(trainer: Trainer) -> bool:
    return math.isfinite(total_steps(trainer))


def _done(trainer: Trainer) -> float:
    """What is done of the run, also of one that went on with other steps; 0 if it has no end."""
    return progress(trainer) if _has_end(trainer) else 0.0


def _share(trainer: Trainer) -> float:
    """What is done of the run, or, if that has no end, of the epoch."""
    if _has_end(trainer):
        return _done(trainer)
    return (trainer.fit_loop.epoch_loop.batch_idx + 1) / trainer.num_training_batches


def _images(batch: Any) -> int:
    x = batch[0] if isinstance(batch, list | tuple) and batch else batch
    return len(x) if isinstance(x, Tensor) else 0


def _short(name: str) -> str:
    """``loss`` as it is, ``loss_discriminator`` as D."""
    return name.removeprefix("loss_")[0].upper() if name.startswith("loss_") else name
