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

    A signal to any process of a run is one to all: they agree after every batch (two numbers are exchanged). Nothing
    is written within an accumulation or before a validation, which a run that goes on from there would leave out: the
    next batch is waited for, or where a validation follows that too, the checkpoint of the last one stays.
    """

    _asked = ""
    _waited = False
    _before: tuple[tuple[int, Any], ...] = ()  # signals and the handlers that stood there

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._asked, self._waited = "", False
        # Lightning's own handler exchanges numbers in the midst of whatever the processes exchange
        numbers = [signal.SIGTERM]
        if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            numbers.append(signal.SIGUSR1)
        self._before = tuple((number, signal.signal(number, self._ask)) for number in numbers)

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked != "SIGTERM":  # which says more
            self._asked = signal.Signals(number).name

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size > 1:
            asked = torch.tensor([self._asked == "SIGTERM", self._asked != ""], device=pl_module.device)
            ends, saves = trainer.strategy.reduce(asked.float(), reduce_op="sum").tolist()
            self._asked = "SIGTERM" if ends else "SIGUSR1" if saves else ""
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if not self._asked or accumulating:
            return
        ends = self._asked == "SIGTERM"
        if not validates_next(trainer, batch_idx):
            self._save(trainer)
        elif not (ends and self._waited):
            self._waited = True
            return
        self._asked, self._waited = "", False
        if ends:
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)
        self._before = ()

    def _save(self, trainer: Trainer) -> None:
        keeper: Any = trainer.checkpoint_callback
        if keeper is None or keeper.dirpath is None:
            rank_zero_info(f"{self._asked}: no checkpoint is written in a run without checkpoints")
            return
        path = Path(keeper.dirpath) / "last.ckpt"
        trainer.save_checkpoint(path)
        rank_zero_info(f"{self._asked}: saved {path}, step {trainer.global_step}")
