"""Scatter plots of latent spaces."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._logging import log_image, run_folder
from callbacks._plots import scatter
from callbacks.base import PerImageCallback
from lit_generative.errors import require_at_least
from lit_generative.protocols import HasComponents, HasLatent, require


class LatentScatter(PerImageCallback):
    """Plot latents, coloured by label or component: two dimensions, or of more the first two principal components.

    Args:
        by: ``label``, or ``component`` of a prior that is a mixture (`HasComponents`).
        num_images: Images of a validation or test, at most.
        evaluation: Arguments of `EvaluationCallback`.
    """

    protocol = HasLatent

    def __init__(self, num_images: int = 5000, by: Literal["label", "component"] = "label", **evaluation: Any) -> None:
        super().__init__(**evaluation)
        require_at_least(self, 1, num_images=num_images)
        self.num_images, self.by = num_images, by

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.by == "component":
            require(pl_module, HasComponents, self)

    def measure(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        z = model.encode(x).flatten(1)
        label = c if c.ndim == 1 else torch.zeros(len(x), device=x.device)  # an image as condition has no colour
        label = model.component_of(z) if self.by == "component" else label
        return torch.cat([z, label[:, None].to(z)], 1)

    def summarize(self, trainer: Trainer, pl_module: LightningModule, stage: str, rows: Tensor) -> None:
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
        name = "scatter" if self.by == "label" else "scatter_components"
        log_image(trainer, run_folder(trainer), name, scatter(z, label, names))
