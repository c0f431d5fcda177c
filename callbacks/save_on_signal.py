"""Runs that are asked to end, or to save."""

import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_generative.runs import validates_next


class SaveOnSignal(Callback):
    """Write ``last.ckpt`` on SIGTERM, which then ends the run, and on SIGUSR1, with which it goes on.

    Between two batches, but not before a validation or within an accumulation, which a run that goes on from there
    would leave out: then the older checkpoint stays (SIGTERM), or the next batch is waited for (SIGUSR1). Several
    processes may get a signal in different batches, where none can wait for another: they keep their last checkpoint.
    """

    _asked = _safe = False  # a signal may come before training starts
    _before: Any = None  # the handler that stood here

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._asked = self._safe = False
        if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            self._before = signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        self._safe = not accumulating and not validates_next(trainer, batch_idx)
        if self._asked and self._safe:
            self._asked = False
            self._save(trainer, "SIGUSR1")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and self._safe:
            self._save(trainer, "SIGTERM")
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
            self._before = None

    def _save(self, trainer: Trainer, name: str) -> None:
        keeper: Any = trainer.checkpoint_callback
        if trainer.world_size > 1 or keeper is None or keeper.dirpath is None:
            rank_zero_info(f"{name}: no checkpoint is written in a run of several processes or without checkpoints")
            return
        path = Path(keeper.dirpath) / "last.ckpt"
        trainer.save_checkpoint(path)
        rank_zero_info(f"{name}: saved {path}, step {trainer.global_step}")
