r"""Disentangling by factorising (Kim & Mnih, 2018), arXiv:1802.05983.

maximise    E_q[log p(x|z)] - KL(q(z|x) || p(z)) - gamma TC                              Eq. 2
TC          = KL(q(z) || prod_j q(z_j)) ~= E_q(z)[log D(z) / (1 - D(z))]                 Eq. 3
D           tells z ~ q(z) from draws whose dimensions were permuted over other images   Algorithms 1 and 2
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.optim import Optimizer

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Adversarial, Batch
from lit_generative.models.vae import VAE
from lit_generative.nn.mlp import mlp
from lit_generative.utils.precision import at_least_float32, for_weights


def permute_dims(z: Tensor) -> Tensor:
    """Each latent dimension of ``(B, latent)`` permuted over the batch by itself: a draw of prod_j q(z_j) (Alg. 1)."""
    order = torch.rand(z.shape, device=z.device).argsort(0)
    return z.gather(0, order)


def accuracy(of_joint: Tensor, of_product: Tensor) -> Tensor:
    """The fraction of the two draws that a log ratio classifies correctly, ``(B,)``."""
    return ((of_joint > 0).float() + (of_product < 0).float()) / 2


class FactorVAE(Adversarial, VAE):  # type: ignore[misc]  # an adversarial training_step returns nothing
    """A VAE whose aggregate posterior is kept from having dependent dimensions, by a discriminator of latents.

    The batch that is permuted is the batch itself, as in disentanglement_lib (Locatello et al., 2019), where the paper
    draws another. On several devices each permutes its own.

    The penalty is only as good as the discriminator. Validation and test log its estimate ``tc``, nats, and its
    ``discriminator_accuracy`` on images that it was not trained on, and `PosteriorStatistics` the
    ``total_correlation_bound`` of their latents: what is there at least. Where ``tc`` stays well below it, the
    discriminator does not keep up and dependence costs the VAE nothing: raise ``n_critic``, its steps to one of the
    VAE.

    Args:
        gamma: Weight of the total correlation.
        units: Width of the discriminator's hidden layers.
        layers: Number of these layers.
        lr_discriminator: The discriminator's learning rate (Adam, betas 0.5 and 0.9); ``lr`` is the VAE's.
        rest: Arguments of `VAE` and `Adversarial`.
    """

    monitor = "val/loss"  # that of the bound
    smallest_batch = 2  # one image cannot be permuted

    def __init__(
        self,
        *,
        gamma: float = 10.0,
        units: int = 1000,
        layers: int = 6,
        lr_discriminator: float = 1e-4,
        **rest: Any,
    ) -> None:
        if gamma < 0 or min(units, layers) < 1:
            raise UserError(f"gamma must be >= 0, units and layers >= 1; got {gamma}, {units}, {layers}")
        super().__init__(**rest)
        self.gamma, self.lr_discriminator = gamma, lr_discriminator
        self.discriminator = mlp([self.latent, *[units] * layers, 1], lambda: nn.LeakyReLU(0.2))

    @property
    def generator(self) -> nn.Module:  # type: ignore[override]
        """What is trained against the discriminator: encoder and decoder."""
        return nn.ModuleList([self.encoder, self.decoder])

    # -- objective ---------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> Tensor:
        """Mean, deviation and a draw of q(z|x), ``(3, B, latent)``."""
        q = self.q(*batch)
        return torch.stack([q.loc, q.scale, q.rsample()])

    def log_ratio(self, z: Tensor) -> Tensor:
        """The discriminator's log D(z) / (1 - D(z)): its estimate of log q(z) / prod_j q(z_j), ``(B,)``."""
        return at_least_float32(self.discriminator(for_weights(z, self.discriminator)).squeeze(-1))

    def judge(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The log ratio of draws of q(z), and of draws of prod_j q(z_j) made of them, both ``(B,)``."""
        of_joint, of_product = self.log_ratio(torch.cat([z, permute_dims(z)])).chunk(2)
        return of_joint, of_product

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        of_joint, of_product = self.judge(fake[2])
        loss = (F.softplus(-of_joint).mean() + F.softplus(of_product).mean()) / 2
        return {"loss_discriminator": loss, "discriminator_accuracy": accuracy(of_joint, of_product).mean()}

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        mu, sigma, z = fake
        reconstruction = -self.p(z, batch[1]).log_prob(batch[0])
        kl = self.kl(Normal(mu, sigma, validate_args=False))
        tc = self.log_ratio(z).mean()
        bound = (reconstruction + self.kl_weight * self.penalised(kl)).mean()
        terms = {"reconstruction": reconstruction.mean(), "kl": kl.sum(-1).mean()}
        return {"loss": bound + self.gamma * tc, "elbo": -sum(terms.values(), torch.zeros_like(tc)), **terms, "tc": tc}

    # -- Lightning ---------------------------------------------------------------------------------

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        """What is measured of a VAE, and the discriminator's estimate and accuracy, from another draw of z."""
        values = super().evaluate(x, c, stage)
        of_joint, of_product = self.judge(self.q(x, c).sample())
        return values | {"tc": of_joint, "discriminator_accuracy": accuracy(of_joint, of_product)}

    def describe_evaluation(self) -> str:
        return (
            f"{super().describe_evaluation()}; tc: the discriminator's estimate of the total correlation, one draw of z"
        )

    def default_optimizers(self) -> list[Optimizer]:
        vae = torch.optim.Adam(self.generator.parameters(), self.lr, fused=self.fused)
        critic = torch.optim.Adam(self.discriminator.parameters(), self.lr_discriminator, (0.5, 0.9), fused=self.fused)
        return [vae, critic]
