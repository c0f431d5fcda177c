"""Whether samples are copies of training images."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.base import ImageCallback, datamodule_of
from lit_generative.errors import UserError, require_at_least
from lit_generative.images import from_uint8, grid, to_uint8
from lit_generative.protocols import HasImages, Samples, require_data


class NearestNeighbours(ImageCallback):
    """Rows of a sample and the training images nearest to it, by Euclidean distance of pixels.

    All images of the training file are searched, those split off for validation too.

    Args:
        n: Rows.
        k: Training images in a row.
        every_n_epochs: Epochs from one image to the next.
        image: Arguments of `ImageCallback`.
    """

    name, protocol, samples = "neighbours", Samples, True

    def __init__(self, n: int = 8, k: int = 7, every_n_epochs: int = 10, **image: Any) -> None:
        super().__init__(every_n_epochs, **image)
        require_at_least(self, 1, n=n, k=k)
        self.n, self.k = n, k

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        data = datamodule_of(trainer)
        require_data(data, HasImages, self)
        if stage == "predict":
            return
        self.images = data.convert(data.stored("train")[0])
        if self.k > len(self.images):
            raise UserError(f"NearestNeighbours: k must be <= {len(self.images)} (training images), got {self.k}")

    def draw(self, model: Any, batch: Any) -> Tensor:
        x = to_uint8(self.conditions.draw(model, self.n)).cpu()
        rows = [torch.cat([sample[None], self.images[self._nearest(sample)]]) for sample in x]
        return grid(from_uint8(torch.cat(rows)), 1 + self.k)

    def _nearest(self, sample: Tensor) -> Tensor:
        flat = sample.flatten().float()
        distances = [(chunk.flatten(1).float() - flat).square().sum(1) for chunk in self.images.split(10_000)]
        return torch.cat(distances).topk(self.k, largest=False).indices
