"""The loss of a diffusion model by time."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from callbacks._logging import log_image, run_folder
from callbacks._plots import curves
from callbacks.base import PerImageCallback
from lit_generative.errors import require_at_least
from lit_generative.protocols import Diffuses


class LossPerTime(PerImageCallback):
    """Plot the training loss by t, each image at one time, averaged in bins; in test also as ``loss_per_time.csv``.

    Args:
        bins: Bins of t, of equal width.
        every_n_epochs: Epochs from one plot to the next; 0: in test only.
        evaluation: Arguments of `EvaluationCallback`.
    """

    protocol = Diffuses

    def __init__(self, bins: int = 50, every_n_epochs: int = 10, **evaluation: Any) -> None:
        super().__init__(every_n_epochs, **evaluation)
        require_at_least(self, 1, bins=bins)
        self.bins = bins

    def measure(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        # stratified over every batch: one time from each of as many equal intervals as there are images
        u = (torch.randperm(len(x), device=x.device) + torch.rand(len(x), device=x.device)) / len(x)
        t = 1 + (u * model.steps).long().clamp(max=model.steps - 1)
        return torch.stack([t.to(x), model.losses_at(x, t, c)], 1)

    def summarize(self, trainer: Trainer, pl_module: Any, stage: str, rows: Tensor) -> None:
        t, loss = rows.T
        which = ((t - 1) * self.bins / pl_module.steps).long()
        count = torch.bincount(which, minlength=self.bins)
        mean = torch.bincount(which, loss, minlength=self.bins) / count
        centres = 1 + (torch.arange(self.bins) + 0.5) * (pl_module.steps - 1) / self.bins
        seen = count > 0
        folder = run_folder(trainer)
        line = torch.stack([centres[seen], mean[seen]])
        log_image(trainer, folder, "loss-per-time", curves({"loss": line}, "t", "loss"))
        if stage == "test" and folder is not None and trainer.is_global_zero:
            lines = [
                f"{float(at):g},{float(value):.6g},{int(n)}" for at, value, n in zip(centres, mean, count, strict=True)
            ]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "loss_per_time.csv").write_text("\n".join(["t,loss,images", *lines]) + "\n")
