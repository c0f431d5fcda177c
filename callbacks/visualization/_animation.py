"""Animations of what one model does, such as a diffusion; for the epochs of a run see `TrainingAnimation`."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._logging import log_animation, log_image, run_folder
from callbacks.base import ImageCallback
from lit_generative.errors import require_at_least
from lit_generative.images import grid
from lit_generative.utils.rng import forked_rng


class Animation(ImageCallback):
    """A GIF of `frames`, and an image with a row for each of ``n`` images and at most ``columns`` of its frames.

    Args:
        n: Images.
        every: Steps of the diffusion from one frame to the next.
        every_n_epochs: Epochs from one animation to the next; 0: in test only.
        image: Arguments of `ImageCallback`.
    """

    columns = 16

    def __init__(self, n: int, every: int, every_n_epochs: int = 10, **image: Any) -> None:
        super().__init__(every_n_epochs, **image)
        require_at_least(self, 1, n=n, every=every)
        self.n, self.every = n, every

    def frames(self, model: Any, batch: Any) -> Tensor:
        """The frames of all images, ``(frames, n, C, H, W)`` in [0, 1]."""
        raise NotImplementedError

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        with forked_rng(self.seed, pl_module.device):
            frames = self.frames(pl_module, batch)
        shown = torch.linspace(0, len(frames) - 1, min(len(frames), self.columns)).round().long()
        folder = run_folder(trainer)
        log_image(trainer, folder, self.name, grid(frames[shown].transpose(0, 1).flatten(0, 1), len(shown)))
        log_animation(trainer, folder, self.name, [grid(frame, 4) for frame in frames])
