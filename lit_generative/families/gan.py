"""Generators of images from Gaussian noise, and what they can do whatever they learned from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Adversarial, Batch
from lit_generative.families.class_conditional import ClassConditional
from lit_generative.images import from_symmetric, to_symmetric
from lit_generative.nn.augmentation import augmented, require_augmentations
from lit_generative.utils.interpolation import spherical_interpolation
from lit_generative.utils.precision import at_least_float32


class GAN(Adversarial, ClassConditional):
    """A generator of images in [-1, 1] from z ~ N(0, I), and a discriminator (or critic).

    With classes, the generator's input is z and the label's one-hot vector (Mirza & Osindero, 2014), and the
    discriminator has an output for each class, which is added to its first for an image with that label: the
    projection discriminator (Miyato & Koyama, 2018).

    A model sets ``generator`` and ``discriminator``, and writes `discriminator_loss`, `generator_loss` and
    `default_optimizers`. ``fake`` is in [-1, 1]; ``batch[0]`` is in [0, 1]: `to_symmetric`.

    Args:
        image_shape: (C, H, W) of the images.
        latent: Dimensions of z.
        width: Channels at the largest resolution; they double towards the smallest.
        lr: Learning rate of both optimisers.
        augment: Differentiable augmentations of what the discriminator sees in training, for few images: of ``color``,
            ``translation`` and ``cutout`` (Zhao et al., 2020).
        adversarial: Arguments of `Adversarial` and `ClassConditional`.
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
        """The generator: z ``(B, latent)``, and the label's one-hot vector if any, to images in [-1, 1]."""
        return {"generator": (self.generator, (torch.zeros(2, self.inputs),))}

    @property
    def inputs(self) -> int:
        """Numbers that the generator takes for an image."""
        return self.latent + self.classes

    def generate(self, batch: Batch) -> Tensor:
        return self.generator(self.with_labels(self.noise(len(batch[0]), self.latent), batch[1]))

    def augmented(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] as the discriminator sees them in training."""
        return augmented(x, self.augment)

    def critic(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The discriminator's outputs ``(B,)`` for images in [-1, 1], with labels if any."""
        out = at_least_float32(self.discriminator(x))
        return out[:, 0] + (out[:, 1:] * self.one_hot(c, out)).sum(1) if self.classes else out

    def judge(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """`critic` of images as it sees them in training."""
        return self.critic(self.augmented(x), c)

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Images of z ``(B, latent)``, ``(B, C, H, W)`` in [0, 1]."""
        return from_symmetric(at_least_float32(self.generator(self.with_labels(z, c))))

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """Images of z ~ N(0, I), ``(n, C, H, W)`` in [0, 1]; with labels ``(n,)`` if any."""
        self.require_labels(n, c)
        return self.decode(self.noise(n, self.latent), c)

    @torch.no_grad()
    def interpolate(self, n: int, steps: int, c: Tensor | None = None) -> Tensor:
        """Images along ``n`` arcs between two draws of z, each with its label if any, ``(n * steps, C, H, W)``."""
        c = None if c is None else c.repeat_interleave(steps)
        return self.decode(spherical_interpolation(self.noise(2, n, self.latent), steps), c)

    def ood_scores(self, x: Tensor) -> dict[str, Tensor]:
        """The discriminator's output for each image, negated: high where it looks fake, ``(B,)``. No likelihood."""
        self.require_images(x)
        return {"discriminator": -self.critic(to_symmetric(x))}
