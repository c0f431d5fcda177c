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
from torch.optim import Optimizer

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Batch
from lit_generative.families.gan import GAN
from lit_generative.images import to_symmetric
from lit_generative.nn.dcgan import DCGANDiscriminator, DCGANGenerator, DenseDiscriminator, PixelShuffleGenerator

NETWORKS: dict[str, Any] = {
    "dcgan": (DCGANGenerator, DCGANDiscriminator),
    "pixel_shuffle": (PixelShuffleGenerator, DenseDiscriminator),
}


class DCGAN(GAN):
    """Generative adversarial network with the non-saturating loss.

    Args:
        network: ``dcgan`` (28, 32, 64, ... pixels), or ``pixel_shuffle`` (28 pixels, two linear layers first).
        beta1: First-moment decay of both Adams.
        label_smoothing: Real images are labelled 1 minus this (Salimans et al., 2016, one-sided).
        spectral_norm: Divide the discriminator's weights by their spectral norms (Miyato et al., 2018).
        gan: Arguments of `GAN` and `Adversarial`.
    """

    def __init__(
        self,
        *,
        network: Literal["dcgan", "pixel_shuffle"] = "dcgan",
        beta1: float = 0.5,
        label_smoothing: float = 0.0,
        spectral_norm: bool = False,
        **gan: Any,
    ) -> None:
        super().__init__(**gan)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.betas, self.real_label = (beta1, 0.999), 1 - label_smoothing
        generator, discriminator = NETWORKS[network]
        self.generator = generator(self.image_shape, self.inputs, self.width)
        self.discriminator = discriminator(self.image_shape, self.width, self.classes, spectral=spectral_norm)

    # -- objective ---------------------------------------------------------------------------------

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        x, c = batch
        real_logits, fake_logits = self.judge(to_symmetric(x), c), self.judge(fake, c)
        real_labels = torch.full_like(real_logits, self.real_label)
        loss = binary_cross_entropy_with_logits(real_logits, real_labels) + softplus(fake_logits).mean()
        return {
            "loss_discriminator": loss,
            "p_real": real_logits.sigmoid().mean(),
            "p_fake": fake_logits.sigmoid().mean(),
        }

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return {"loss_generator": softplus(-self.judge(fake, batch[1])).mean()}

    # -- Lightning ---------------------------------------------------------------------------------

    def default_optimizers(self) -> list[Optimizer]:
        networks = (self.generator, self.discriminator)
        return [torch.optim.Adam(n.parameters(), self.lr, self.betas, fused=self.fused) for n in networks]
