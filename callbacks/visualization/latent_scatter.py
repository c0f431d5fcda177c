"""Where images are in a latent space."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._logging import log_image, run_folder
from callbacks._plots import scatter
from callbacks.base import PerImageCallback
from lit_generative.errors import UserError
from lit_generative.protocols import HasLatent, require


class LatentScatter(PerImageCallback):
    """Latents of all images of a validation or test, coloured by label: the two dimensions, or principal components.

    Args:
        num_images: Points drawn, at most.
        every_n_epochs: In validation; 0: in test only.
        seed: Of the choice of points.
    """

    def __init__(self, num_images: int = 5000, every_n_epochs: int = 1, seed: int = 0) -> None:
        if num_images < 1 or every_n_epochs < 0:
            raise UserError(
                f"LatentScatter: num_images must be >= 1, every_n_epochs >= 0; got {num_images}, {every_n_epochs}"
            )
        self.num_images, self.every_n_epochs, self.seed = num_images, every_n_epochs, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, HasLatent, self)

    def keep(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        z = model.encode(x).flatten(1)
        label = c if c.ndim == 1 else torch.zeros(len(x), device=x.device)  # an image as condition has no colour
        return torch.cat([z, label[:, None].to(z)], 1)

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str, rows: Tensor) -> None:
        rows = rows[rows.isfinite().all(1)]  # a model may have diverged
        rows = rows[torch.randperm(len(rows))[: self.num_images]]
        z, label = rows[:, :-1], rows[:, -1].long()
        names = ["z_0", "z_1"]
        if z.shape[1] > 2 and len(z) > 1:
            z = z - z.mean(0)
            _, deviations, directions = torch.pca_lowrank(z, min(6, *z.shape), center=False, niter=4)
            shares = deviations.square() / z.square().sum().clamp(min=1e-30)
            z = z @ directions[:, :2]
            names = [f"principal component {i + 1} ({100 * float(shares[i]):.0f} %)" for i in range(2)]
        elif z.shape[1] == 1:
            z, names = torch.cat([z, torch.zeros_like(z)], 1), ["z_0", ""]
        log_image(trainer, run_folder(trainer), "scatter", scatter(z, label, names))
