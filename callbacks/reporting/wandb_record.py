"""What a W&B run has besides curves and images: axes, summaries, protocols of numbers, and checkpoints."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from callbacks._logging import run_folder
from callbacks.base import datamodule_of
from lit_generative.checkpoints.best import last_checkpoint, run_checkpoint
from lit_generative.checkpoints.record import record

STEP = "trainer/global_step"  # counts batches for every model
ROWS = 10_000  # rows of a table, at most


class WandbRecord(Callback):
    """Record in W&B what dashboards need; nothing without a `WandbLogger`. A failure there never stops a run.

    * The x axis of every metric is the number of batches; the summary has the best value of a monitored metric.
    * Model, data and the protocol of a test are fields to filter by; the row of results is in the summary.
    * Histograms of the weights of every network, after every validation.
    * The checkpoints as artifacts ``<run id>-checkpoint`` with the aliases ``best`` and ``last``, when training ends,
      also if it fails or the run is offline (unlike those of ``WandbLogger(log_model=True)``).
    * Out-of-distribution scores of every image as a table.
    * The run's id in the checkpoint, so that ``--resume`` continues the same W&B run.

    Args:
        checkpoints: Whether to upload checkpoints as artifacts.
    """

    def __init__(self, checkpoints: bool = True) -> None:
        self.checkpoints = checkpoints

    def _record(self, trainer: Trainer, write: Callable[[Any], None]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                import wandb

                try:
                    write(logger.experiment)
                except (wandb.Error, OSError, RuntimeError, ValueError) as error:
                    rank_zero_warn(f"W&B could not record this: {error}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        def define(run: Any) -> None:
            data = datamodule_of(trainer)
            run.config.update({"model": type(pl_module).__name__, "data": type(data).__name__}, allow_val_change=True)
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP)
            for keeper in trainer.checkpoint_callbacks:
                if isinstance(keeper, ModelCheckpoint) and keeper.monitor:
                    run.define_metric(keeper.monitor, step_metric=STEP, summary=keeper.mode)

        self._record(trainer, define)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return

        def histograms(run: Any) -> None:
            import torch
            import wandb

            shown: dict[str, Any] = {STEP: trainer.global_step}
            for name, network in pl_module.named_children():
                if weights := [p.detach().flatten() for p in network.parameters()]:
                    numbers: Any = torch.cat(weights).float().cpu().numpy()
                    shown[f"weights/{name}"] = wandb.Histogram(numbers)
            run.log(shown)

        self._record(trainer, histograms)

    # -- checkpoints -------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and logger.version is not None:
                record(checkpoint)["wandb_id"] = str(logger.version)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        keeper, last = run_checkpoint(trainer), last_checkpoint(trainer)
        if not self.checkpoints or keeper is None or last is None:
            return

        def upload(run: Any) -> None:
            import wandb

            for alias, path in {"best": Path(keeper.best_model_path), "last": last}.items():
                if path.is_file():
                    facts = {"step": trainer.global_step, "monitor": keeper.monitor, "model": type(pl_module).__name__}
                    artifact = wandb.Artifact(f"{run.id}-checkpoint", type="model", metadata=facts)
                    artifact.add_file(str(path))
                    run.log_artifact(artifact, aliases=[alias])

        self._record(trainer, upload)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_fit_end(trainer, pl_module)  # the checkpoints so far

    # -- tests -------------------------------------------------------------------------------------

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not (folder / "results.json").is_file():  # written by `Report`
            return
        results = json.loads((folder / "results.json").read_text())

        def results_of_test(run: Any) -> None:
            import wandb

            run.config.update({"protocol": results["protocol"]}, allow_val_change=True)
            run.summary.update({f"row/{name}": cell for name, cell in results["row"].items()})
            if (scores := folder / "ood" / "scores.csv").is_file():
                with scores.open(newline="") as file:
                    names, *rows = csv.reader(file)
                run.log({"ood/scores": wandb.Table(columns=[*names], data=rows[:ROWS])})

        self._record(trainer, results_of_test)
