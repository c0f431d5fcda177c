"""How a diffusion makes images of noise."""

from typing import Any

from torch import Tensor

from callbacks.visualization._animation import Animation
from lit_generative.protocols import Diffuses


class DenoisingAnimation(Animation):
    """``n`` samples on their way from noise, every ``every`` steps of all T; this asks the network T times.

    A GIF, and a picture with a row for each sample.
    """

    name, protocol, samples = "denoising", Diffuses, True

    def __init__(self, n: int = 8, every: int = 24, every_n_epochs: int = 10, seed: int = 0) -> None:
        super().__init__(n, every, every_n_epochs, seed)

    def frames(self, model: Any, batch: Any) -> Tensor:
        return model.denoising_trajectory(self.n, self.every, self.conditions.labels(self.n, model.device))
