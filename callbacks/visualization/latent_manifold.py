"""A manifold in latent space through four images."""

from typing import Any

from torch import Tensor

from callbacks.base import ImageCallback
from lit_generative.errors import require_at_least
from lit_generative.images import grid
from lit_generative.protocols import HasLatent
from lit_generative.utils.interpolation import manifold


class LatentManifold(ImageCallback):
    """Images on the torus through the latents of four images of the first batch (Dinh et al., 2017, Eq. 19).

    Args:
        steps: Images along each side.
        image: Arguments of `ImageCallback`.
    """

    name, protocol = "manifold", HasLatent

    def __init__(self, steps: int = 8, **image: Any) -> None:
        super().__init__(**image)
        require_at_least(self, 2, steps=steps)
        self.steps = steps

    def draw(self, model: Any, batch: Any) -> Tensor:
        x = batch[0].repeat(4, 1, 1, 1)[:4]  # a smaller batch gives some images twice
        z = model.encode(x)
        points = manifold(z.flatten(1), self.steps).unflatten(1, z.shape[1:])
        return grid(model.decode(points), self.steps)
