"""How a diffusion model turns noise into images."""

from typing import Any

from torch import Tensor

from callbacks.visualization._animation import Animation
from lit_generative.protocols import Diffuses


class DenoisingAnimation(Animation):
    """Samples on their way from noise, as a GIF and an image with a row for each; the network is evaluated T times.

    Args:
        n: Samples.
        every: Steps of the diffusion from one frame to the next.
        animation: Arguments of `ImageCallback`.
    """

    name, protocol, samples = "denoising", Diffuses, True

    def __init__(self, n: int = 8, every: int = 24, **animation: Any) -> None:
        super().__init__(n, every, **animation)

    def frames(self, model: Any, batch: Any) -> Tensor:
        return model.denoising_trajectory(self.n, self.every, self.conditions.labels(self.n, model.device))
