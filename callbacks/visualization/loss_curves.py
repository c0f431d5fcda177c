"""Losses over the epochs in one plot."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._logging import log_image, run_folder
from callbacks._plots import curves


class LossCurves(Callback):
    """Plot what was last logged in every epoch, as ``images/loss-curves...png``, when training ends or fails.

    An epoch in which nothing was logged has no point.

    Args:
        metrics: Names as they are logged; those that never were are left out.
    """

    def __init__(
        self, metrics: Sequence[str] = ("train/loss_generator", "train/loss_discriminator", "train/loss_l1")
    ) -> None:
        self.metrics = tuple(metrics)
        self._points: dict[str, list[tuple[int, float]]] = {}
        self._seen: dict[str, torch.Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in self.metrics:
            value = trainer.callback_metrics.get(name)
            # the same tensor object: it was not logged again
            if value is not None and value is not self._seen.get(name):
                self._seen[name] = value
                points = self._points.setdefault(name, [])
                if points and points[-1][0] == trainer.current_epoch:
                    points.pop()  # of a run that ended within the epoch and was resumed
                points.append((trainer.current_epoch, float(value)))

    def state_dict(self) -> dict[str, Any]:
        return {name: [list(point) for point in points] for name, points in self._points.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._points = {name: [(x, y) for x, y in points] for name, points in state_dict.items()}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if self._points:
            lines = {name: torch.tensor(points).T for name, points in self._points.items()}
            log_image(trainer, folder, "loss-curves", curves(lines, "epoch", "loss"))
