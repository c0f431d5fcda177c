"""What each latent dimension does to an image."""

from typing import Any

import torch
from torch import Tensor

from callbacks.base import ImageCallback
from lit_generative.errors import UserError, require_at_least
from lit_generative.images import grid
from lit_generative.protocols import HasLatent


class LatentTraversal(ImageCallback):
    """One row per latent dimension: the first image of the batch while that dimension moves through its range.

    The ends are quantiles of the dimension over the batch, so that a row shows values that occur. Dimensions that vary
    most come first.

    Args:
        steps: Images in a row.
        dims: Dimensions, at most.
        quantile: A row goes from this quantile of its dimension to one minus it.
        image: Arguments of `ImageCallback`.
    """

    name, protocol = "traversals", HasLatent

    def __init__(self, steps: int = 10, dims: int = 32, quantile: float = 0.02, **image: Any) -> None:
        super().__init__(**image)
        require_at_least(self, 2, steps=steps)
        require_at_least(self, 1, dims=dims)
        if not 0 <= quantile < 0.5:
            raise UserError(f"LatentTraversal: quantile must be in [0, 0.5), got {quantile}")
        self.steps, self.dims, self.quantile = steps, dims, quantile

    def draw(self, model: Any, batch: Any) -> Tensor:
        z = model.encode(batch[0])
        flat = z.flatten(1).float().cpu()
        shown = flat.var(0, correction=0).argsort(descending=True)[: self.dims]
        at = torch.linspace(self.quantile, 1 - self.quantile, self.steps)
        values = flat.quantile(at[[0, -1]], 0)[:, shown]  # (2, dims)
        path = torch.lerp(values[0], values[1], torch.linspace(0, 1, self.steps)[:, None])
        codes = flat[0].repeat(len(shown), self.steps, 1)
        codes[torch.arange(len(shown)), :, shown] = path.T
        return grid(model.decode(codes.flatten(0, 1).unflatten(1, z.shape[1:]).to(z)), self.steps)
