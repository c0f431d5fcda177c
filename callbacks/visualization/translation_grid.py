"""Source, translation and target side by side."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.base import datamodule_of
from callbacks.visualization._first_images import FirstImages
from lit_generative.protocols import Translates


class TranslationGrid(FirstImages):
    """The first pairs of validation or test, each as a row: source, translation, target (if the data are pairs).

    Also in the last epoch, if there is a validation then. Source images of other than one or three channels (one-hot
    labels) are shown as grey levels of the largest channel.

    Args:
        n: Pairs.
        every_n_epochs: Epochs from one image to the next.
        image: Arguments of `ImageCallback`.
    """

    name, protocol, what = "translations", Translates, "pairs"

    def __init__(self, n: int = 3, every_n_epochs: int = 10, **image: Any) -> None:
        super().__init__(n, every_n_epochs=every_n_epochs, **image)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._paired = getattr(datamodule_of(trainer), "paired", True)

    def due(self, trainer: Trainer) -> bool:
        last = trainer.current_epoch + 1 == trainer.max_epochs and not trainer.sanity_checking
        return last or super().due(trainer)

    def rows(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        return torch.stack([shown(c, x), model.translate(c), *[x] * self._paired], 1)


def shown(c: Tensor, x: Tensor) -> Tensor:
    """Source images with the channels of their targets ``x``."""
    if c.shape[1] not in (1, x.shape[1]):
        c = c.argmax(1, keepdim=True) / (c.shape[1] - 1)
    return c.expand_as(x)
