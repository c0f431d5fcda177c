"""Progress of a run."""

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks.reporting._lines import numbers, position, total_steps
from callbacks.reporting._screen import Bar, Lines, Pace, TaskScreen, screen
from lit_generative.training.log import TrainLog
from lit_generative.training.progress import progress
from lit_generative.utils.tasks import Task, show_tasks


class Progress(ProgressBar):
    """In a terminal one bar for the whole run; elsewhere a plain line for every tenth of it, and every 30 seconds.

    It shows the epoch, the losses, images per second and the time left. Losses are those last logged, and before that
    means so far. In a run without an end the bar is that of the epoch. What else lasts longer than a few seconds
    (`tracked`: samples, statistics, scores) has a bar of its own while it lasts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._screen: Bar | Lines | None = None  # None: nothing is shown
        self._losses: tuple[Any, str] = None, ""  # as the model gave them, and as text
        self._tasks = TaskScreen(make_room=self._make_room)

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def _begin(self, name: str, total: float, done: float) -> None:
        if self._enabled:
            self._pace, self._screen = Pace(total, done), screen(name, done / total)

    def _end(self) -> None:
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        show_tasks(self._show_tasks)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        show_tasks(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        show_tasks(None)
        self._tasks.close()
        self._end()

    def _make_room(self) -> None:
        if self._screen is not None:
            self._screen.close()

    def _show_tasks(self, tasks: Sequence[Task]) -> None:
        if self._enabled:
            self._tasks(tasks)
        if not tasks and self._screen is not None:
            self._pace.pause()  # it counts towards the time left, but not towards the speed

    # -- training ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = None, ""
        self._begin(position(trainer), 1.0 if _has_end(trainer) else math.inf, _done(trainer))

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
        if latest is not self._losses[0]:  # reading values waits for the device
            names = sorted(latest, key=lambda name: name != "loss")
            self._losses = latest, "  ".join(numbers({_short(name): float(latest[name]) for name in names}))
        limits = [c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]
        left = min((limit for limit in limits if limit is not None), default=math.inf)
        speed = self._pace.describe(_done(trainer), _images(batch) * trainer.world_size, left)
        self._screen.show(position(trainer), _fraction(trainer), f"{self._losses[1]}  {speed}")

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
        if self._screen is None:  # as in the sanity check
            return
        self._seen += 1
        self._pace.batches += 1
        fits = trainer.state.fn == TrainerFn.FITTING
        if not self._screen.is_due(_done(trainer) if fits else self._seen / self._batches):
            return
        total = f"{self._batches:,}"
        count = f"{self._seen:>{len(total)},}/{total}"
        if fits:
            self._screen.show(position(trainer), _fraction(trainer), f"validation {count}")
        else:
            speed = self._pace.describe(self._seen, _images(batch) * trainer.world_size)
            self._screen.show(self._name, self._seen / self._batches, f"{count}  {speed}")

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._end()
        elif self._screen is not None:
            self._pace.pause()  # validation counts towards the time left, but not towards the speed

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    on_predict_end = on_test_end


def _has_end(trainer: Trainer) -> bool:
    return math.isfinite(total_steps(trainer))


def _done(trainer: Trainer) -> float:
    """The fraction of the run that is done, also after it was resumed with another length; 0 if it has no end."""
    return progress(trainer) if _has_end(trainer) else 0.0


def _fraction(trainer: Trainer) -> float:
    """The fraction that is done of the run, or of the epoch if the run has no end."""
    if _has_end(trainer):
        return _done(trainer)
    return (trainer.fit_loop.epoch_loop.batch_idx + 1) / trainer.num_training_batches


def _images(batch: Any) -> int:
    x = batch[0] if isinstance(batch, list | tuple) and batch else batch
    return len(x) if isinstance(x, Tensor) else 0


def _short(name: str) -> str:
    """``loss_discriminator`` as D; other names as they are."""
    return name.removeprefix("loss_")[0].upper() if name.startswith("loss_") else name
