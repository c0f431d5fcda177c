"""Generators of images from Gaussian noise, and what they can do whatever they learned from."""

import torch
from torch import Tensor, nn

from lit_generative.families.adversarial import Adversarial, Batch
from lit_generative.images import from_symmetric, to_symmetric
from lit_generative.utils.interpolation import spherical_interpolation
from lit_generative.utils.precision import at_least_float32


class GAN(Adversarial):
    """A game whose generator makes images in [-1, 1] of z ~ N(0, I).

    A model sets ``image_shape``, ``latent``, ``generator`` and ``discriminator``, and writes `discriminator_loss`,
    `generator_loss` and `configure_optimizers`. ``fake`` is in [-1, 1]; ``batch[0]`` is in [0, 1]: `to_symmetric`.
    """

    latent: int
    ood_headline = "discriminator"

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """The generator: z ``(B, latent)`` to images in [-1, 1]."""
        return {"generator": (self.generator, (torch.zeros(2, self.latent),))}

    def generate(self, batch: Batch) -> Tensor:
        return self.generator(self.noise(len(batch[0]), self.latent))

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
        """How little the discriminator thinks of each image, ``(B,)``. Not a likelihood."""
        self.require_images(x)
        return {"discriminator": -at_least_float32(self.discriminator(to_symmetric(x)))}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`ood_scores` of every image, with its label ``c``."""
        return self.ood_scores(batch[0]) | {"c": batch[1]}
