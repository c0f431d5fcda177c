"""Runs that may be killed at any moment and go on: checkpoints written whole, curves continued, the newest found."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lit_generative.checkpoints.best import BestModelCheckpoint, last_checkpoint
from lit_generative.checkpoints.load import has_training_state, read_checkpoint
from lit_generative.checkpoints.record import CheckpointError
from lit_generative.utils.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all: written aside, flushed to the disk, then renamed.

    A disk that is full or gone costs a checkpoint and not the run: a warning says so, and older checkpoints stay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lost: set[str] = set()  # paths whose newest checkpoint could not be written

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with atomic_write(Path(path)) as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            self.lost.discard(str(path))
        except (OSError, RuntimeError) as error:  # torch's writer turns the one into the other
            self.lost.add(str(path))
            rank_zero_warn(f"the checkpoint {path} could not be written ({error}): the run goes on without it")

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        here, states = str(Path(path).parent), checkpoint.get("callbacks", {})
        own = {state["dirpath"] for key, state in states.items() if str(key).startswith(BestModelCheckpoint.__name__)}
        for state in states.values():
            before = state.get("dirpath") if isinstance(state, dict) else None
            # best scores are kept for a folder, by its name: it may have been moved, or named from elsewhere. Another
            # folder, of a user's own `ModelCheckpoint`, is where it was.
            if before and (not own or before in own):
                for key, value in state.items():
                    if isinstance(value, str):
                        state[key] = value.replace(before, here)
                models = state.get("best_k_models", {})
                state["best_k_models"] = {name.replace(before, here): score for name, score in models.items()}
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        if not self.lost:  # else it may be the last that there is
            super().remove_checkpoint(path)


def step_begun(trainer: Trainer) -> bool:
    """Whether the batches so far make a part of a step, after which no run can be resumed."""
    accumulating = (trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0
    # the last batch completes its step
    return (accumulating and not trainer.is_last_batch) or getattr(trainer.lightning_module, "step_begun", False)


def validates_next(trainer: Trainer) -> bool:
    """Whether a validation, or the end of the epoch, follows this batch of training."""
    loop = trainer.fit_loop.epoch_loop
    # as Lightning counts: over epochs where validations do not go by them
    batches = (loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx) + 1
    due = loop._should_check_val_epoch() and batches % (trainer.val_check_batch or math.inf) == 0
    return trainer.is_last_batch or due


def is_missing_metric_error(error: BaseException) -> bool:
    """Whether Lightning says that nothing logged what it was to choose a checkpoint by, or to stop by."""
    said = ("could not find the monitored key", "Early stopping conditioned on metric")
    return any(text in str(error) for text in said)


class LastCheckpoint(Checkpoint):
    """Keep ``last.ckpt``, whatever the best is: after every epoch, and after validations within it.

    Args:
        every_n_steps: Also every so many steps, after the next batch from which a run can be resumed exactly.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps, self._saved = every_n_steps, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps
        due = every is not None and trainer.global_step // every > self._saved // every
        # a run resumed from there would leave out the rest of the step, or the validation
        if due and not step_begun(trainer) and not validates_next(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fits = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fits and not trainer.is_last_batch and not step_begun(trainer):  # else the end of the epoch follows
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # which comes between a batch and the end of its epoch, in all processes alike: what was trained is kept
        if is_missing_metric_error(exception) and not step_begun(trainer):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        path = last_checkpoint(trainer)
        if path is not None and trainer.global_step > self._saved:
            trainer.save_checkpoint(path, weights_only=False)
            self._saved = trainer.global_step


def newest_checkpoint(runs: Path) -> Path | None:
    """The newest readable checkpoint of the newest run in a folder of runs, ``version_*``; None if it has none.

    One that is damaged is passed over with a warning.
    """
    numbers = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
    versions = sorted(int(number) for number in numbers if number.isdigit())
    if not versions:
        return None
    steps: dict[Path, int] = {}  # times of files would trust the clock
    for path in sorted((runs / f"version_{versions[-1]}" / "checkpoints").glob("*.ckpt")):
        try:
            checkpoint = read_checkpoint(path)
            if has_training_state(checkpoint):  # which training cannot go on without
                steps[path] = checkpoint.get("global_step", 0)
        except CheckpointError as error:
            rank_zero_warn(f"{error}: passed over")
    if steps:  # of one step, the last rather than the best
        return max(steps, key=lambda path: (steps[path], path.name == "last.ckpt", path.name))
    return None
