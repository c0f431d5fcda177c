r"""Disentangling by factorising (Kim & Mnih, 2018), arXiv:1802.05983.

maximise    E_q[log p(x|z)] - KL(q(z|x) || p(z)) - gamma TC                              Eq. 2
TC          = KL(q(z) || prod_j q(z_j)) ~= E_q(z)[log D(z) / (1 - D(z))]                 Eq. 3
D           tells z ~ q(z) from draws whose dimensions were permuted over other images   Algorithms 1 and 2
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Adversarial, Batch
from lit_generative.metrics.aggregation import Moments
from lit_generative.models.vae import VAE, Network
from lit_generative.nn.mlp import mlp
from lit_generative.utils.precision import at_least_float32, for_weights


def permute_dims(z: Tensor) -> Tensor:
    """Each latent dimension of ``(B, latent)`` permuted over the batch by itself: a draw of prod_j q(z_j) (Alg. 1)."""
    order = torch.rand(z.shape, device=z.device).argsort(0)
    return z.gather(0, order)


def accuracy(of_joint: Tensor, of_product: Tensor) -> Tensor:
    """The share of the two draws that a log ratio is right about, ``(B,)``."""
    return ((of_joint > 0).float() + (of_product < 0).float()) / 2


class FactorVAE(Adversarial, VAE):  # type: ignore[misc]  # a game's training_step returns nothing
    """A VAE whose aggregate posterior is kept from having dependent dimensions, by a discriminator of latents.

    The batch that is permuted is the batch itself, as in disentanglement_lib (Locatello et al., 2019), where the paper
    draws another. On several devices each permutes its own.

    The penalty is only as good as the discriminator. Validation and test log its estimate ``tc``, nats, and its
    ``discriminator_accuracy`` on images that it was not trained on, and `PosteriorStatistics` the
    ``total_correlation_bound`` of their latents: what is there at least. Where ``tc`` stays well below it, the
    discriminator does not keep up and dependence costs the VAE nothing: raise ``lr_discriminator`` or ``units``, or
    lower ``lr``.

    Args:
        gamma: Weight of the total correlation.
        units: Width of the discriminator's hidden layers.
        layers: How many it has.
        lr_discriminator: Its learning rate (Adam, betas 0.5 and 0.9); ``lr`` is the VAE's.
        accumulate_grad_batches: Batches whose gradients make one step.
        clip: Norm to which gradients are clipped; 0: not at all. The other arguments are those of :class:`VAE`.
    """

    monitor = "val/loss"  # that of the bound
    smallest_batch = 2  # one image cannot be permuted

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent: int = 10,
        network: Network = "mlp",
        hidden: Sequence[int] = (300, 300),
        activation: Literal["ReLU", "Tanh", "SiLU"] = "ReLU",
        likelihood: Literal["bernoulli", "logistic", "gaussian"] = "logistic",
        lr: float = 1e-3,
        lr_decay_start: float = 1.0,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
        test_k: Sequence[int] = (5, 50, 150),
        gamma: float = 10.0,
        units: int = 1000,
        layers: int = 6,
        lr_discriminator: float = 1e-4,
        accumulate_grad_batches: int = 1,
        clip: float = 0.0,
        init_from: str | None = None,
    ) -> None:
        if gamma < 0 or min(units, layers) < 1:
            raise UserError(f"gamma starts at 0, units and layers at 1; got {gamma}, {units}, {layers}")
        super().__init__(
            accumulate_grad_batches=accumulate_grad_batches,
            clip=clip,
            image_shape=image_shape,
            latent=latent,
            network=network,
            hidden=hidden,
            activation=activation,
            likelihood=likelihood,
            lr=lr,
            lr_decay_start=lr_decay_start,
            kl_warmup=kl_warmup,
            free_bits=free_bits,
            test_k=test_k,
        )
        self.gamma, self.lr_discriminator = gamma, lr_discriminator
        self.discriminator = mlp([latent, *[units] * layers, 1], lambda: nn.LeakyReLU(0.2))
        self.judged = Moments(2)  # tc and accuracy of every image seen in validation or test
        self.start_from(init_from)

    @property
    def generator(self) -> nn.Module:  # type: ignore[override]
        """What plays against the discriminator: encoder and decoder."""
        return nn.ModuleList([self.encoder, self.decoder])

    # -- objective ---------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> Tensor:
        """Mean, deviation and a draw of q(z|x), ``(3, B, latent)``."""
        q = self.q(batch[0])
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
        reconstruction = -self.p(z).log_prob(batch[0])
        kl = self.kl(Normal(mu, sigma, validate_args=False))
        tc = self.log_ratio(z).mean()
        bound = (reconstruction + self.kl_weight * self.penalised(kl)).mean()
        terms = {"reconstruction": reconstruction.mean(), "kl": kl.sum(-1).mean()}
        return {"loss": bound + self.gamma * tc, "elbo": -sum(terms.values(), torch.zeros_like(tc)), **terms, "tc": tc}

    # -- Lightning ---------------------------------------------------------------------------------

    validation_step, test_step = VAE.validation_step, VAE.test_step  # this game has a bound to validate by

    def evaluate(self, x: Tensor) -> None:
        super().evaluate(x)
        of_joint, of_product = self.judge(self.q(x).sample())
        self.judged.update(torch.stack([of_joint, accuracy(of_joint, of_product)], -1))

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._log_judged("val")

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._log_judged("test")

    def _log_judged(self, stage: str) -> None:
        tc, right = self.judged.compute()[0].float()
        self.judged.reset()
        self.log_dict({f"{stage}/tc": tc, f"{stage}/discriminator_accuracy": right}, sync_dist=True)

    def describe_test(self) -> str:
        return f"{super().describe_test()}; tc: the discriminator's estimate of the total correlation, one draw of z"

    def configure_optimizers(self) -> Any:
        # fused optimisers cannot be clipped in half precision
        vae = torch.optim.Adam(self.generator.parameters(), self.lr, fused=not self.clip)
        critic = torch.optim.Adam(
            self.discriminator.parameters(), self.lr_discriminator, (0.5, 0.9), fused=not self.clip
        )
        return [self.with_decay(vae, self.lr_decay_start), self.with_decay(critic, self.lr_decay_start)]
