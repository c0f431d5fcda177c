"""Whether anything logs the numbers that checkpoints are chosen and runs are stopped by."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from callbacks._first_batch import FirstBatch
from lit_generative.errors import UserError


class CheckMonitors(Callback):
    """Stop before training if a checkpoint, or `EarlyStopping`, follows a number that nothing in the run logs.

    What the model logs is seen in the validation before training; what callbacks log later they say themselves. Names
    of training (``train/...``) are not checked, nor is a run with callbacks of the user's own, which may log anything,
    or one without a validation before training (``num_sanity_val_steps: 0``, or resumed): Lightning then stops in the
    first that misses a number.

    Raises:
        ValueError: A number is missing; the message names it, what is logged, and both remedies.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        packages = {type(callback).__module__.partition(".")[0] for callback in callbacks}
        if not packages <= {"callbacks", "lightning", "lit_generative"}:
            return
        logged = {*trainer.callback_metrics}
        for callback in callbacks:
            if isinstance(callback, FirstBatch) and callback.every_n_epochs:
                logged |= {f"val/{name}" for name in callback.logged}
        for callback in callbacks:
            if not isinstance(callback, ModelCheckpoint | EarlyStopping) or not getattr(callback, "strict", True):
                continue
            name = callback.monitor
            if name is not None and name not in logged and not name.startswith("train/"):
                chosen = isinstance(callback, ModelCheckpoint)
                other = "--checkpoint.monitor (null: keep the last)" if chosen else "the monitor of EarlyStopping"
                raise UserError(
                    f"{type(callback).__name__} follows {name}, but nothing in this run logs it; logged in validation: "
                    f"{', '.join(sorted(logged)) or 'nothing'}. Add the callback that logs it to --trainer.callbacks, "
                    f"or change {other}"
                )
