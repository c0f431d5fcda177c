"""The callback that keeps a run's checkpoints: how it names them, what it chooses by, and where they are."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lit_generative.errors import UserError

DEFAULT_MONITOR = "val/loss"


class BestModelCheckpoint(ModelCheckpoint):
    """The command line's own `ModelCheckpoint`, whatever others a user adds.

    It writes ``best.ckpt``; where several are kept (``save_top_k``), ``epoch0003-step0000120.ckpt`` and so on. A
    ``filename`` without epoch or step gets them too then, so that no checkpoint takes the place of another.
    """

    CHECKPOINT_EQUALS_CHAR = ""

    @property
    def _legacy_state_key(self) -> Any:
        """Under which runs that began before there was this class have its state."""
        return self.state_key.removeprefix("Best")

    def choose_monitor(self, model: Any, data: Any, validates: bool) -> None:
        """Decide before training what the best is chosen by, and make sure that nothing is written over.

        Unless told otherwise the model names the number. Without validation there is none: the last is kept.

        Raises:
            ValueError: Several are to be kept, and no metric tells which; or ``dirpath`` has checkpoints already.
        """
        chosen = self.monitor not in (None, DEFAULT_MONITOR)
        if self.monitor == DEFAULT_MONITOR:
            self.monitor = getattr(model, "monitor", DEFAULT_MONITOR)
        if (not validates or getattr(data, "val_size", None) == 0) and (self.monitor or "").startswith("val/"):
            if chosen:
                rank_zero_warn(f"{self.monitor} needs validation, and this run has none: keeping the last checkpoint")
            self.monitor = None
        if self.monitor is None and self.save_top_k > 1:
            raise UserError(
                f"--checkpoint.save_top_k {self.save_top_k} needs a metric to rank checkpoints by: set "
                "--checkpoint.monitor, or save_top_k to 1 (the last) or -1 (all)"
            )
        if self.dirpath and (there := sorted(Path(self.dirpath).glob("*.ckpt"))):
            raise UserError(
                f"{self.dirpath} holds checkpoints already ({there[0].name}), which a new run would write over: choose "
                "another --checkpoint.dirpath, or leave it out"
            )

    def format_checkpoint_name(
        self, metrics: dict[str, Any], filename: str | None = None, ver: int | None = None, prefix: str | None = None
    ) -> str:
        several = self.save_top_k not in (0, 1)
        name = filename or self.filename or ("" if several else "best")
        for key, digits in (("epoch", 4), ("step", 7)) if several and filename is None else ():
            if f"{{{key}" not in name:
                name += f"-{'' if self.auto_insert_metric_name else key}{{{key}:0{digits}d}}"
        name = name.removeprefix("-")
        path = super().format_checkpoint_name(metrics, name, ver, prefix)
        folder = os.path.join(self.dirpath, "") if self.dirpath else ""
        return folder + path.removeprefix(folder).replace("/", "_")  # of metrics' names: no folders

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        """Lightning's, but silent where a run ends before its first validation: there is nothing to choose by yet."""
        validated = trainer.fit_loop.epoch_loop.val_loop._has_run
        if validated or not (self.monitor or "").startswith("val/"):
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """With ``save_on_exception``: beside the best, and not in its place."""
        name, self.filename = self.filename, "exception"
        try:
            super().on_exception(trainer, pl_module, exception)
        finally:
            self.filename = name


def run_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """What keeps a run's checkpoints: the command line's own callback; in Python the first `ModelCheckpoint`."""
    keepers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next(iter(sorted(keepers, key=lambda keeper: not isinstance(keeper, BestModelCheckpoint))), None)


def last_checkpoint(trainer: Trainer) -> Path | None:
    """``last.ckpt`` beside the run's other checkpoints, be it there or not; None in a run without checkpoints."""
    folder = getattr(run_checkpoint(trainer), "dirpath", None)
    return None if folder is None else Path(folder) / "last.ckpt"
