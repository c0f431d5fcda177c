"""Generators of images from Gaussian noise, and what they can do whatever they learned from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Adversarial, Batch
from lit_generative.images import from_symmetric, to_symmetric
from lit_generative.nn.augmentation import augmented, require_augmentations
from lit_generative.utils.interpolation import spherical_interpolation
from lit_generative.utils.precision import at_least_float32


class GAN(Adversarial):
    """A generator of images in [-1, 1] from z ~ N(0, I), and a discriminator (or critic).

    A model sets ``generator`` and ``discriminator``, and writes `discriminator_loss`, `generator_loss` and
    `default_optimizers`. ``fake`` is in [-1, 1]; ``batch[0]`` is in [0, 1]: `to_symmetric`.

    Args:
        image_shape: (C, H, W) of the images.
        latent: Dimensions of z.
        width: Channels at the largest resolution; they double towards the smallest.
        lr: Learning rate of both optimisers.
        augment: Differentiable augmentations of what the discriminator sees in training, for few images: of ``color``,
            ``translation`` and ``cutout`` (Zhao et al., 2020).
        adversarial: Arguments of `Adversarial`.
    """

    ood_headline = "discriminator"

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent: int = 100,
        width: int = 64,
        lr: float = 2e-4,
        augment: Sequence[str] = (),
        **adversarial: Any,
    ) -> None:
        super().__init__(**adversarial)
        require_augmentations(augment)
        if min(latent, width) < 1:
            raise UserError(f"latent and width must be >= 1, got {latent} and {width}")
        self.save_hyperparameters()
        self.image_shape, self.latent, self.width, self.lr = image_shape, latent, width, lr
        self.augment = tuple(augment)

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """The generator: z ``(B, latent)`` to images in [-1, 1]."""
        return {"generator": (self.generator, (torch.zeros(2, self.latent),))}

    def generate(self, batch: Batch) -> Tensor:
        return self.generator(self.noise(len(batch[0]), self.latent))

    def augmented(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] as the discriminator sees them in training."""
        return augmented(x, self.augment)

    def judge(self, x: Tensor) -> Tensor:
        """The discriminator's outputs ``(B,)`` for images in [-1, 1] in training."""
        return at_least_float32(self.discriminator(self.augmented(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Images of z ``(B, latent)``, ``(B, C, H, W)`` in [0, 1]."""
        return from_symmetric(at_least_float32(self.generator(z)))

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """Images of z ~ N(0, I), ``(n, C, H, W)`` in [0, 1]."""
        return self.decode(self.noise(n, self.latent))

    @torch.no_grad()
    def interpolate(self, n: int, steps: int, c: Tensor | None = None) -> Tensor:
        """Images along ``n`` arcs between two draws of z, ``(n * steps, C, H, W)`` in [0, 1]."""
        return self.decode(spherical_interpolation(self.noise(2, n, self.latent), steps))

    def ood_scores(self, x: Tensor) -> dict[str, Tensor]:
        """The discriminator's output for each image, negated: high where it looks fake, ``(B,)``. No likelihood."""
        self.require_images(x)
        return {"discriminator": -at_least_float32(self.discriminator(to_symmetric(x)))}
