"""The direction of an attribute in a latent space."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.base import datamodule_of
from callbacks.visualization._first_images import FirstImages
from lit_generative.errors import UserError, require_at_least
from lit_generative.images import from_uint8
from lit_generative.protocols import HasImages, HasLatent, require_data
from lit_generative.utils.precision import for_weights


class AttributeDirection(FirstImages):
    """Images of one class moved along the difference between two classes' mean latents: a smile, a heel.

    The means are over training images; the images that are changed are the first of the class in validation or test.

    Args:
        classes: Label without the attribute, whose images are changed, and label with it.
        steps: Multiples of the difference that are added, one column each.
        n: Rows.
        num_images: Training images of each class, at most, that its mean is taken over.
        image: Arguments of `ImageCallback`.
    """

    name, protocol = "attribute", HasLatent

    def __init__(
        self,
        classes: tuple[int, int] = (0, 1),
        steps: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3),
        n: int = 8,
        num_images: int = 1000,
        **image: Any,
    ) -> None:
        super().__init__(n, **image)
        require_at_least(self, 1, num_images=num_images)
        if not steps:
            raise UserError("AttributeDirection: steps must have at least one number, got none")
        self.classes, self.steps, self.num_images = tuple(classes), tuple(steps), num_images
        self.what = f"images of class {classes[0]}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "predict":
            return
        data = datamodule_of(trainer)
        require_data(data, HasImages, self)
        images, labels = data.stored("train")
        self._images = []
        for label in self.classes:
            (chosen,) = (labels == label).nonzero(as_tuple=True)
            if not len(chosen):
                raise UserError(
                    f"AttributeDirection: {data.name} has no images of class {label}; it has "
                    f"{labels.unique().tolist()}: choose other classes, or leave the callback out"
                )
            self._images.append(data.as_test(images[chosen[: self.num_images]]))

    def wanted(self, c: Tensor) -> Tensor:
        return c == self.classes[0]

    def rows(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        if not self.shown:  # once in an evaluation
            without, with_it = (self._mean(model, images) for images in self._images)
            self._direction = (with_it - without).flatten()
        z = model.encode(x)
        added = torch.tensor(self.steps, device=z.device, dtype=z.dtype)[:, None] * self._direction  # (steps, latent)
        codes = (z.flatten(1)[:, None] + added).flatten(0, 1).unflatten(1, z.shape[1:])
        return model.decode(codes).unflatten(0, (len(x), len(self.steps)))

    def _mean(self, model: Any, images: Tensor) -> Tensor:
        chunks = [
            model.encode(for_weights(from_uint8(chunk.to(model.device)), model)).sum(0) for chunk in images.split(128)
        ]
        return torch.stack(chunks).sum(0) / len(images)
