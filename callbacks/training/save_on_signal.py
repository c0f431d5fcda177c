"""Signals that ask a run to save, or to end."""

import os
import signal
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_generative.checkpoints.best import last_checkpoint
from lit_generative.checkpoints.last import step_begun, validates_next


class SaveOnSignal(Callback):
    """Write ``last.ckpt`` on SIGTERM or Ctrl-C and end the run; on SIGUSR1 write it and continue.

    A signal to any process reaches all: they exchange flags after every batch. A step that has begun is completed
    first. If a validation or the end of the epoch comes next, the run ends after it, when `LastCheckpoint` has
    written. A second Ctrl-C does not wait. A test or a prediction of several processes ends at once.
    """

    signals = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

    def __init__(self) -> None:
        self._asked: list[int] = []  # of this process since the last batch; a handler may append at any time
        self._due: set[int] = set()  # of all processes
        self._ends: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # With several processes Lightning's own handler would wait for the others in the middle of a collective.
        # When training ends Lightning restores the handlers that it found.
        if signal.getsignal(signal.SIGTERM) != self._ask:
            self._asked, self._due, self._ends = [], set(), None
        for number in self.signals:
            usual = (signal.SIG_DFL, signal.default_int_handler)  # others were set on purpose, as in the background
            first = number not in self._asked  # not after Ctrl-C in the sanity check
            if number == signal.SIGTERM or (first and signal.getsignal(number) in usual):
                signal.signal(number, self._ask)

    on_sanity_check_start = on_train_start

    def _ask(self, number: int, frame: Any) -> None:
        self._asked.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if os.environ.get("LOCAL_RANK", "0") == "0":
                os.write(2, b"\nending after this batch, or the validation that is due; Ctrl-C again: at once\n")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def end(number: int, frame: Any) -> None:
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(number)  # the processes that this one has started
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, end)

    on_predict_start = on_test_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        mine = [self._asked.pop() for _ in range(len(self._asked))]
        if trainer.world_size > 1:
            flags = torch.tensor([float(number in mine) for number in self.signals], device=pl_module.device)
            counts = trainer.strategy.reduce(flags, reduce_op="sum").tolist()
            mine = [number for number, count in zip(self.signals, counts, strict=True) if count]
        self._due.update(mine)
        if not self._due or step_begun(trainer):
            return
        asked = next(number for number in self.signals if number in self._due)
        self._due.clear()
        ends = asked in (signal.SIGTERM, signal.SIGINT)
        if validates_next(trainer):
            self._ends = asked if ends else None
            rank_zero_info(f"{asked.name}: last.ckpt will be written after the validation, or the epoch")
            return
        self._save(trainer, asked.name)
        if ends:
            raise SIGTERMException(asked)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._ends is not None:
            raise SIGTERMException(self._ends)

    @staticmethod
    def _save(trainer: Trainer, name: str) -> None:
        path = last_checkpoint(trainer)
        if path is None:
            rank_zero_info(f"{name}: nothing is saved in a run without checkpoints")
            return
        trainer.save_checkpoint(path, weights_only=False)
        rank_zero_info(f"{name}: saved {path}, step {trainer.global_step}")
