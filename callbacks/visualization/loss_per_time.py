"""Where along a diffusion the loss is."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._logging import log_image, run_folder
from callbacks._plots import curves
from callbacks.base import PerImageCallback
from lit_generative.errors import UserError
from lit_generative.protocols import Diffuses, require


class LossPerTime(PerImageCallback):
    """The training loss by t, each image at one time of its own, averaged in ``bins``: a plot, and a table in test.

    Args:
        bins: Of t, of equal widths.
        every_n_epochs: In validation; 0: in test only.
        seed: Of the times and the noise.
    """

    def __init__(self, bins: int = 50, every_n_epochs: int = 10, seed: int = 0) -> None:
        if bins < 1 or every_n_epochs < 0:
            raise UserError(f"LossPerTime: bins must be >= 1, every_n_epochs >= 0; got {bins} and {every_n_epochs}")
        self.bins, self.every_n_epochs, self.seed = bins, every_n_epochs, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, Diffuses, self)

    def keep(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        # the same law of times for every batch: one from each of as many equal parts as there are images
        u = (torch.randperm(len(x), device=x.device) + torch.rand(len(x), device=x.device)) / len(x)
        t = 1 + (u * model.steps).long().clamp(max=model.steps - 1)
        return torch.stack([t.to(x), model.losses_at(x, t, c)], 1)

    def finish(self, trainer: Trainer, pl_module: Any, stage: str, rows: Tensor) -> None:
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
