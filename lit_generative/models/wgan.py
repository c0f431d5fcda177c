r"""Wasserstein GANs: Arjovsky et al. (2017), arXiv:1701.07875, and Gulrajani et al. (2017), arXiv:1704.00028.

    W_1(p, q)      = max over f with |f|_Lipschitz <= 1 of E_p[f(x)] - E_q[f(x)]              WGAN, Eq. 2
    loss_critic    = E_z[f(G(z))] - E_x[f(x)]  (+ lambda penalty)
    loss_generator = -E_z[f(G(z))]
    penalty        = E[(|grad f(x_hat)|_2 - 1)^2],  x_hat = eps x + (1 - eps) G(z), eps ~ U[0, 1]    WGAN-GP, Eq. 3

WGAN keeps f Lipschitz (up to a factor) by clipping its weights, WGAN-GP by the penalty.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Batch
from lit_generative.families.gan import GAN
from lit_generative.images import to_symmetric
from lit_generative.nn.dcgan import DCGANDiscriminator, DCGANGenerator
from lit_generative.utils.precision import at_least_float32


def distance(critic: Callable[[Tensor, Tensor], Tensor], batch: Batch, fake: Tensor) -> Tensor:
    """E_x[f(x)] - E_z[f(G(z))], the critic's estimate of W_1 (up to its Lipschitz constant)."""
    x, c = batch
    return critic(to_symmetric(x), c).mean() - critic(fake, c).mean()


class WGAN(GAN):
    """Wasserstein GAN whose critic's weights are clipped.

    Args:
        clip_weights: Bound on every weight of the critic.
        lr: Learning rate of both RMSprops.
        n_critic: Steps of the critic to one of the generator.
        gan: Arguments of `GAN` and `Adversarial`.
    """

    def __init__(self, *, clip_weights: float = 0.01, lr: float = 5e-5, n_critic: int = 5, **gan: Any) -> None:
        super().__init__(lr=lr, n_critic=n_critic, **gan)
        if clip_weights <= 0:
            raise UserError(f"clip_weights must be > 0, got {clip_weights}")
        self.clip_weights = clip_weights
        self.generator = DCGANGenerator(self.image_shape, self.inputs, self.width)
        self.discriminator = DCGANDiscriminator(self.image_shape, self.width, self.classes)

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        wasserstein = distance(self.judge, batch, fake)
        return {"loss_critic": -wasserstein, "wasserstein": wasserstein}

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return {"loss_generator": -self.judge(fake, batch[1]).mean()}

    @torch.no_grad()
    def after_discriminator_step(self) -> None:
        for p in self.discriminator.parameters():
            p.clamp_(-self.clip_weights, self.clip_weights)

    def default_optimizers(self) -> list[Optimizer]:
        return [torch.optim.RMSprop(n.parameters(), self.lr) for n in (self.generator, self.discriminator)]


def gradient_penalty(critic: Callable[[Tensor], Tensor], x: Tensor, fake: Tensor) -> Tensor:
    """E[(|grad f(x_hat)|_2 - 1)^2] between ``x`` and ``fake`` ``(B, C, H, W)``, float32 or float64 (WGAN-GP, Eq. 3)."""
    with torch.autocast(x.device.type, enabled=False):
        x, fake = at_least_float32(x), at_least_float32(fake)
        eps = torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
        # by torch.func, which torch.compile can trace: it has no second derivatives of autograd's
        gradient = torch.func.grad(lambda x_hat: critic(x_hat).sum())(torch.lerp(fake, x, eps))
        norm = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()  # the root of 0 has no gradient
        return (norm - 1).square().mean()


class WGANGP(GAN):
    """Wasserstein GAN with gradient penalty; its critic has no batch norm, which would mix images.

    Args:
        penalty: The penalty's weight lambda.
        lr: Learning rate of both Adams, whose betas are (0, 0.9).
        n_critic: Steps of the critic to one of the generator.
        gan: Arguments of `GAN` and `Adversarial`.
    """

    needs_float32 = "the penalty is on unrounded gradients"

    def __init__(self, *, penalty: float = 10.0, lr: float = 1e-4, n_critic: int = 5, **gan: Any) -> None:
        super().__init__(lr=lr, n_critic=n_critic, **gan)
        if penalty < 0:
            raise UserError(f"penalty must be >= 0, got {penalty}")
        self.penalty = penalty
        self.generator = DCGANGenerator(self.image_shape, self.inputs, self.width)
        self.discriminator = DCGANDiscriminator(self.image_shape, self.width, self.classes, norm="none")

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        wasserstein = distance(self.judge, batch, fake)
        x, c = batch
        critic = partial(self.critic, c=c)
        penalty = gradient_penalty(critic, *map(self.augmented, (to_symmetric(x), fake)))
        loss = self.penalty * penalty - wasserstein
        return {"loss_critic": loss, "wasserstein": wasserstein, "gradient_penalty": penalty}

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return {"loss_generator": -self.judge(fake, batch[1]).mean()}

    def default_optimizers(self) -> list[Optimizer]:
        networks = (self.generator, self.discriminator)
        return [torch.optim.Adam(n.parameters(), self.lr, (0.0, 0.9), fused=self.fused) for n in networks]
