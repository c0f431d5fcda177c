r"""Unsupervised representation learning with deep convolutional GANs (Radford et al., 2015), arXiv:1511.06434.

With logits l = D(x), so that log D and log(1 - D) are taken without overflow (Goodfellow et al., 2014):

    loss_discriminator = -E_x[log sigmoid(l(x))] - E_z[log(1 - sigmoid(l(G(z))))]       Eq. 1
    loss_generator     = -E_z[log sigmoid(l(G(z)))]                                     Section 3, non-saturating
    z ~ N(0, I)
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Batch
from lit_generative.families.gan import GAN
from lit_generative.images import to_symmetric
from lit_generative.nn.dcgan import DCGANDiscriminator, DCGANGenerator, DenseDiscriminator, PixelShuffleGenerator
from lit_generative.utils.precision import at_least_float32

NETWORKS: dict[str, Any] = {
    "dcgan": (DCGANGenerator, DCGANDiscriminator),
    "pixel_shuffle": (PixelShuffleGenerator, DenseDiscriminator),
}


class DCGAN(GAN):
    """Generative adversarial network with the non-saturating loss.

    Args:
        image_shape: (C, H, W) of the images.
        latent: Dimensions of z.
        width: Channels at the largest resolution; they double towards the smallest.
        network: ``dcgan`` (28, 32, 64, ... pixels), or ``pixel_shuffle`` (28 pixels, two linear layers first).
        lr: Learning rate of both Adams.
        beta1: Their first-moment decay.
        label_smoothing: Real images are labelled 1 minus this (Salimans et al., 2016, one-sided).
        spectral_norm: Divide the discriminator's weights by their spectral norms (Miyato et al., 2018).
        n_critic: Steps of the discriminator to one of the generator.
        accumulate_grad_batches: Batches whose gradients make one step.
        clip: Norm to which gradients are clipped; 0: not at all.
        init_from: Weights to start from, see `start_from`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent: int = 100,
        width: int = 64,
        network: Literal["dcgan", "pixel_shuffle"] = "dcgan",
        lr: float = 2e-4,
        beta1: float = 0.5,
        label_smoothing: float = 0.0,
        spectral_norm: bool = False,
        n_critic: int = 1,
        accumulate_grad_batches: int = 1,
        clip: float = 0.0,
        init_from: str | None = None,
    ) -> None:
        super().__init__(n_critic, accumulate_grad_batches, clip)
        if min(latent, width) < 1 or not 0 <= label_smoothing < 1:
            raise UserError(
                f"latent and width start at 1, label_smoothing is in [0, 1); got {latent}, {width}, {label_smoothing}"
            )
        self.save_hyperparameters(ignore=["init_from"])
        self.image_shape, self.latent = image_shape, latent
        self.lr, self.betas, self.real_label = lr, (beta1, 0.999), 1 - label_smoothing
        generator, discriminator = NETWORKS[network]
        self.generator = generator(self.image_shape, latent, width)
        self.discriminator = discriminator(self.image_shape, width, spectral=spectral_norm)
        self.start_from(init_from)

    # -- objective ---------------------------------------------------------------------------------

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        real_logits = at_least_float32(self.discriminator(to_symmetric(batch[0])))
        fake_logits = at_least_float32(self.discriminator(fake))
        real_labels = torch.full_like(real_logits, self.real_label)
        loss = binary_cross_entropy_with_logits(real_logits, real_labels) + softplus(fake_logits).mean()
        return {
            "loss_discriminator": loss,
            "p_real": real_logits.sigmoid().mean(),  # what the discriminator thinks of either
            "p_fake": fake_logits.sigmoid().mean(),
        }

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return {"loss_generator": softplus(-at_least_float32(self.discriminator(fake))).mean()}

    # -- Lightning ---------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        networks = (self.generator, self.discriminator)
        return [torch.optim.Adam(n.parameters(), self.lr, self.betas, fused=not self.clip) for n in networks]
