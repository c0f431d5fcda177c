"""Runs that are asked to end, or to save."""

import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_generative.runs import validates_next


class SaveOnSignal(Callback):
    """Write ``last.ckpt`` on SIGTERM, which then ends the run, and on SIGUSR1, with which it goes on.

    A signal to any process of a run is one to all: they agree after every batch (one number is exchanged). Nothing is
    written before a validation or within an accumulation, which a run that goes on from there would leave out: the
    next batch is waited for.
    """

    _asked: int | None = None
    _before: tuple[tuple[int, Any], ...] = ()  # signals and the handlers that stood there

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._asked = None
        # Lightning's own handler exchanges numbers in the midst of whatever the processes exchange
        numbers = [signal.SIGTERM]
        if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            numbers.append(signal.SIGUSR1)
        self._before = tuple((number, signal.signal(number, self._ask)) for number in numbers)

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked != signal.SIGTERM:  # which says more
            self._asked = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if accumulating or validates_next(trainer, batch_idx):
            return
        ends, saves = (self._asked == signal.SIGTERM), self._asked is not None
        if trainer.world_size > 1:
            asked = torch.tensor([float(ends), float(saves)], device=pl_module.device)
            ends, saves = trainer.strategy.reduce(asked, reduce_op="sum").bool().tolist()
        if saves:
            self._asked = None
            self._save(trainer, "SIGTERM" if ends else "SIGUSR1")
        if ends:
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)
        self._before = ()

    @staticmethod
    def _save(trainer: Trainer, name: str) -> None:
        keeper: Any = trainer.checkpoint_callback
        if keeper is None or keeper.dirpath is None:
            rank_zero_info(f"{name}: no checkpoint is written in a run without checkpoints")
            return
        path = Path(keeper.dirpath) / "last.ckpt"
        trainer.save_checkpoint(path)
        rank_zero_info(f"{name}: saved {path}, step {trainer.global_step}")
