r"""The GAN is dead; long live the GAN! A modern baseline GAN (Huang et al., 2024), arXiv:2501.05441.

With logits D and pairs of a real image x and a fake G(z) (relativistic pairing: Jolicoeur-Martineau, 2018):

    loss_discriminator = E[softplus(D(G(z)) - D(x))] + gamma / 2 (R1 + R2)
    loss_generator     = E[softplus(D(x) - D(G(z)))]
    R1 = E|grad D(x)|^2,  R2 = E|grad D(G(z))|^2                                 (Mescheder et al., 2018)

The loss of pairs has no local minima in which modes are dropped (Sun et al., 2020, as the paper quotes them).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.optim import Optimizer

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Batch
from lit_generative.families.gan import GAN
from lit_generative.images import to_symmetric
from lit_generative.nn.dcgan import DCGANDiscriminator, DCGANGenerator
from lit_generative.nn.r3gan import R3Discriminator, R3Generator
from lit_generative.utils.precision import at_least_float32


def logits_and_penalty(critic: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """D(x) ``(B,)`` and E|grad D(x)|^2 at images ``(B, C, H, W)``, float32 or float64, from one evaluation."""

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = critic(x)
        return logits.sum(), logits

    with torch.autocast(x.device.type, enabled=False):
        # by torch.func, which torch.compile can trace: it has no second derivatives of autograd's
        gradient, logits = torch.func.grad(total, has_aux=True)(at_least_float32(x))
        return logits, gradient.flatten(1).square().sum(1).mean()


class R3GAN(GAN):
    """Relativistic GAN with zero-centred penalties on real and on fake images.

    Args:
        penalty: gamma.
        network: The paper's residual networks (``r3gan``), or those of `WGANGP` (``dcgan``), to compare losses; the
            next four arguments are of the former.
        blocks: Residual blocks at every resolution.
        expansion: Channels within a block to those between them.
        group: Channels of a group of the blocks' 3x3 convolutions.
        patch: Side of the squares of pixels that are channels to both networks, to save time.
        lr: Learning rate of both Adams, whose betas are (0, 0.99).
        latent: Dimensions of z.
        gan: Arguments of `GAN` and `Adversarial`.
    """

    needs_float32 = "the penalties are on unrounded gradients"

    def __init__(
        self,
        *,
        penalty: float = 1.0,
        network: Literal["r3gan", "dcgan"] = "r3gan",
        blocks: int = 1,
        expansion: int = 2,
        group: int = 16,
        patch: int = 1,
        lr: float = 2e-4,
        latent: int = 64,
        **gan: Any,
    ) -> None:
        super().__init__(lr=lr, latent=latent, **gan)
        if penalty < 0 or min(blocks, expansion, group, patch) < 1:
            raise UserError(
                "penalty must be >= 0, blocks, expansion, group and patch >= 1; "
                f"got {penalty}, {blocks}, {expansion}, {group}, {patch}"
            )
        self.penalty = penalty
        if network == "dcgan":
            self.generator = DCGANGenerator(self.image_shape, self.inputs, self.width)
            self.discriminator = DCGANDiscriminator(self.image_shape, self.width, self.classes, norm="none")
        else:
            sizes = blocks, expansion, group, patch
            self.generator = R3Generator(self.image_shape, self.inputs, self.width, *sizes)
            self.discriminator = R3Discriminator(self.image_shape, self.width, *sizes, self.classes)

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        real, fake = self.augmented(to_symmetric(batch[0])), self.augmented(fake)
        critic = partial(self.critic, c=batch[1])
        (real_logits, r1), (fake_logits, r2) = (logits_and_penalty(critic, images) for images in (real, fake))
        loss = softplus(fake_logits - real_logits).mean() + self.penalty / 2 * (r1 + r2)
        right = (real_logits > fake_logits).float().mean()
        return {"loss_discriminator": loss, "r1": r1, "r2": r2, "pairs_told_apart": right}

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        x, c = batch
        return {"loss_generator": softplus(self.judge(to_symmetric(x), c) - self.judge(fake, c)).mean()}

    def default_optimizers(self) -> list[Optimizer]:
        networks = (self.generator, self.discriminator)
        return [torch.optim.Adam(n.parameters(), self.lr, (0.0, 0.99), fused=self.fused) for n in networks]
