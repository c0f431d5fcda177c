"""Losses over the epochs in one picture."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._logging import log_image, run_folder
from callbacks._plots import curves


class LossCurves(Callback):
    """Draw what was last logged in every epoch as ``images/loss-curves...png`` when training ends.

    Args:
        metrics: Names, as they are logged; those that never were are left out.
    """

    def __init__(
        self, metrics: Sequence[str] = ("train/loss_generator", "train/loss_discriminator", "train/loss_l1")
    ) -> None:
        self.metrics = tuple(metrics)
        self._points: dict[str, list[tuple[int, float]]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in self.metrics:
            if name in trainer.callback_metrics:
                point = trainer.current_epoch, float(trainer.callback_metrics[name])
                self._points.setdefault(name, []).append(point)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if self._points:
            lines = {name: torch.tensor(points).T for name, points in self._points.items()}
            log_image(trainer, folder, "loss-curves", curves(lines, "epoch", "loss"))
