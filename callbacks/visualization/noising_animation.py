"""How a diffusion process turns images into noise."""

from typing import Any

import torch
from torch import Tensor

from callbacks.visualization._animation import Animation
from lit_generative.protocols import Diffuses


class NoisingAnimation(Animation):
    """The first images of a batch at t = 0, ``every``, 2 ``every``, ..., with the same noise at every t.

    A GIF, and an image with a row for each.

    Args:
        n: Images.
        every: Steps of the diffusion from one frame to the next.
        animation: Arguments of `ImageCallback`.
    """

    name, protocol = "noising", Diffuses

    def __init__(self, n: int = 8, every: int = 20, **animation: Any) -> None:
        super().__init__(n, every, **animation)

    def frames(self, model: Any, batch: Any) -> Tensor:
        x, frames = batch[0][: self.n], []
        for t in range(0, model.steps + 1, self.every):
            torch.manual_seed(self.seed)  # within the forked RNG: one path for each image, not a new one at every t
            frames.append(model.noised(x, torch.full((len(x),), t, device=x.device)))
        return torch.stack(frames)
