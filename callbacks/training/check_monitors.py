"""Whether anything logs the metrics that checkpoints and early stopping monitor."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from callbacks.base import EvaluationCallback
from lit_generative.checkpoints.best import BestModelCheckpoint
from lit_generative.errors import UserError
from lit_generative.training.log import TrainLog


class CheckMonitors(Callback):
    """Stop before training if a checkpoint or `EarlyStopping` monitors a metric that nothing in the run logs.

    What the model logs is known from the sanity check, or in a resumed run from its checkpoint; what callbacks log
    later, from their ``logged``. Metrics of training (``train/...``) are checked after the first batch, unless the
    model optimises manually and logs losses of several batches together.

    A run with callbacks of the user, which may log anything, or without a sanity check (``num_sanity_val_steps: 0``) is
    not checked: Lightning then stops at the first metric that is missing.

    Raises:
        ValueError: A metric is missing; the message names it, what is logged, and both remedies.
    """

    def __init__(self) -> None:
        self._logged: list[str] | None = None  # in validation; None: not known
        self._trained = False

    def state_dict(self) -> dict[str, Any]:
        return {} if self._logged is None else {"logged": self._logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._logged = state_dict.get("logged")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged = sorted(trainer.callback_metrics)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation:
            self._require(trainer, set(), "validation, which this run does not have")
        elif self._logged is not None:
            promised = {
                f"val/{name}"
                for callback in trainer.callbacks  # type: ignore[attr-defined]
                if isinstance(callback, EvaluationCallback) and callback.every_n_epochs
                for name in callback.logged
            }
            self._require(trainer, promised.union(self._logged), "validation")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._trained or not isinstance(pl_module, TrainLog) or not pl_module.automatic_optimization:
            return
        if names := pl_module.names_gathered:  # empty after a batch that was skipped
            self._trained = True
            self._require(trainer, names | {"train/images_per_second", *trainer.callback_metrics}, "training")

    def _require(self, trainer: Trainer, logged: set[str], stage: str) -> None:
        """Raise a `UserError` if a metric of this stage is monitored that is not among those ``logged``."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        packages = {type(callback).__module__.partition(".")[0] for callback in callbacks}
        if not packages <= {"callbacks", "lightning", "lit_generative"}:
            return
        for callback in callbacks:
            if not isinstance(callback, ModelCheckpoint | EarlyStopping) or not getattr(callback, "strict", True):
                continue
            name, training = callback.monitor, stage == "training"
            if name is not None and name not in logged and name.startswith("train") == training:
                own = isinstance(callback, BestModelCheckpoint)
                kind = type(callback).__name__.removeprefix("Best")
                remedy = "--checkpoint.monitor (null: keep the last)" if own else f"the monitor of {kind}"
                raise UserError(
                    f"{kind} monitors {name}, but nothing in this run logs it; "
                    f"logged in {stage}: {', '.join(sorted(logged)) or 'nothing'}. Add the callback that logs it to "
                    f"--trainer.callbacks, or change {remedy}"
                )
