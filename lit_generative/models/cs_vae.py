r"""Cauchy-Schwarz regularized autoencoder (Tran, Pantic & Deisenroth, 2022), JMLR 23, arXiv:2101.02149.

    p(z)     = sum_k pi_k N(m_k, diag s_k^2),  q(z|x) = N(mu(x), diag sigma(x)^2)
    maximise   E_q[log p(x|z)] - lambda D_CS(q(z|x) || p(z))
    D_CS     = -log int q p + 1/2 log int q^2 + 1/2 log int p^2
    int N(z; a, A) N(z; b, B) dz = N(a; b, A + B)

Unlike the KL divergence, D_CS to a mixture has a closed form. The objective is not a bound; with it stand

    E_q[log p(x|z)] - lambda D_CS = log p(x) - KL(q || p(z|x)) + KL(q || p(z)) - lambda D_CS

whose four terms are logged in test. ``elbo``, ``nll`` and the choice of checkpoints are those of the true bound with
the mixture as prior, whose density is exact.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from lit_generative.errors import UserError
from lit_generative.metrics.aggregation import Contingency, Stats
from lit_generative.models.vae import VAE


def log_overlap(a: Tensor, var_a: Tensor, b: Tensor, var_b: Tensor) -> Tensor:
    """log int N(z; a, var_a) N(z; b, var_b) dz of diagonal Gaussians ``(..., D)``, nats ``(...)``."""
    var = var_a + var_b
    return -0.5 * ((a - b).square() / var + var.log() + math.log(2 * math.pi)).sum(-1)


class GaussianMixture(nn.Module):
    """A mixture of ``components`` diagonal Gaussians of ``dims`` numbers, whose parameters are learned.

    The means begin at draws of N(0, I), the variances at 1, the weights equal.
    """

    def __init__(self, components: int, dims: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, dims))
        self.log_scales = nn.Parameter(torch.zeros(components, dims))

    @property
    def log_weights(self) -> Tensor:
        """log pi, ``(components,)``."""
        return self.logits.log_softmax(0)

    @property
    def variances(self) -> Tensor:
        return (2 * self.log_scales).exp()

    def log_joint(self, z: Tensor) -> Tensor:
        """log pi_k + log N(z; m_k, s_k^2) of ``(..., D)``, nats ``(..., components)``."""
        component = Normal(self.means, self.log_scales.exp(), validate_args=False)
        return self.log_weights + component.log_prob(z[..., None, :]).sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) of ``(..., D)``, nats ``(...)``."""
        return self.log_joint(z).logsumexp(-1)

    def cauchy_schwarz(self, mean: Tensor, variance: Tensor) -> Tensor:
        """D_CS between Gaussians ``(B, D)`` and the mixture, nats ``(B,)``; at least 0, and 0 where they are equal."""
        own, weights = self.variances, self.log_weights
        cross = (weights + log_overlap(mean[:, None], variance[:, None], self.means, own)).logsumexp(-1)
        pairs = weights[:, None] + weights + log_overlap(self.means[:, None], own[:, None], self.means, own)
        alone = log_overlap(mean, variance, mean, variance)
        return -cross + 0.5 * alone + 0.5 * pairs.flatten().logsumexp(0)


class CSVAE(VAE):
    """A VAE with a learned mixture as its prior, drawn to it by the Cauchy-Schwarz or the KL divergence.

    Its components are a clustering of the images; a test logs ``clustering_accuracy``, the share of images whose label
    is that of their component under the best matching of the two.

    Args:
        components: Of the mixture.
        divergence: ``cauchy_schwarz``, or ``kl``, by one draw of z, which makes the objective the true bound.
        weight: lambda, of the divergence; with ``kl`` at 1 it is the bound.
        vae: Arguments of `VAE`, but for ``kl_warmup`` and ``free_bits``.
    """

    def __init__(
        self,
        *,
        components: int = 10,
        divergence: Literal["cauchy_schwarz", "kl"] = "cauchy_schwarz",
        weight: float = 1.0,
        **vae: Any,
    ) -> None:
        if components < 1 or weight < 0:
            raise UserError(f"components must be >= 1 and weight >= 0, got {components} and {weight}")
        if vae.get("kl_warmup") or vae.get("free_bits"):
            raise UserError("kl_warmup and free_bits are of a KL term by dimension: leave them at 0")
        super().__init__(**vae)
        self.divergence, self.weight = divergence, weight
        self.prior = GaussianMixture(components, self.latent)
        self.clusters = Contingency(components)  # of the images of a test, against their labels

    # -- objective ---------------------------------------------------------------------------------

    def objective(self, x: Tensor, c: Tensor | None = None) -> dict[str, Tensor]:
        """As `VAE.objective`; ``kl`` is from the draw of z, and ``cauchy_schwarz`` exact."""
        q = self.q(x, c)
        z = q.rsample()
        reconstruction, kl = -self.p(z, c).log_prob(x), q.log_prob(z).sum(-1) - self.log_prior(z)
        terms = {"elbo": -(reconstruction + kl), "reconstruction": reconstruction, "kl": kl}
        terms["cauchy_schwarz"] = self.prior.cauchy_schwarz(q.loc, q.variance)
        return {"loss": reconstruction + self.weight * terms[self.divergence], **terms}

    def bound(self, x: Tensor, c: Tensor | None = None) -> dict[str, Tensor]:
        return self.objective(x, c)

    def log_prior(self, z: Tensor) -> Tensor:
        return self.prior.log_prob(z)

    def kl(self, q: Normal) -> Tensor:
        """KL(q(z|x) || p(z)) from one draw, nats ``(B, 1)``: to the mixture it has no closed form by dimension."""
        z = q.rsample()
        return (q.log_prob(z).sum(-1) - self.log_prior(z))[:, None]

    # -- components --------------------------------------------------------------------------------

    def component_of(self, z: Tensor) -> Tensor:
        """The component that latents ``(..., D)`` are most likely of, int64 ``(...)``."""
        return self.prior.log_joint(z).argmax(-1)

    def sample_prior(self, n: int, component: int | None = None) -> Tensor:
        """Draws z ~ p(z), or of one component, ``(n, latent)``."""
        chosen = self.prior.log_weights.exp().multinomial(n, replacement=True) if component is None else component
        return self.prior.means[chosen] + self.prior.log_scales[chosen].exp() * self.noise(n, self.latent)

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None, component: int | None = None) -> Tensor:
        """Decode draws of the mixture, or of one ``component`` (from 0 on), ``(n, C, H, W)`` in [0, 1].

        Raises:
            ValueError: There is no such component.
        """
        if component is not None and not 0 <= component < len(self.prior.logits):
            raise UserError(f"component must be 0 to {len(self.prior.logits) - 1}, got {component}")
        self.require_labels(n, c)
        return self.decode(self.sample_prior(n, component), c)

    # -- Lightning ---------------------------------------------------------------------------------

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        values = super().evaluate(x, c, stage)
        q = self.q(x, c)
        values["cauchy_schwarz"] = self.prior.cauchy_schwarz(q.loc, q.variance)
        if stage == "test":
            values["posterior_kl"] = -values["nll"] - values["elbo"]  # KL(q || p(z|x)), with the tightest bound
            if c.dim() == 1:
                self.clusters.update(self.component_of(q.loc), c)
        return values

    def summarize(self, stage: str, stats: dict[str, Stats]) -> dict[str, Tensor]:
        numbers = super().summarize(stage, stats)
        if stage == "test" and self.clusters.counts.any():
            numbers["clustering_accuracy"] = self.clusters.compute()
            numbers["components_used"] = (self.prior.log_weights.exp() > 0.5 / len(self.prior.logits)).sum()
            self.clusters.reset()
        return numbers

    def describe_evaluation(self) -> str:
        return (
            f"{super().describe_evaluation()}; prior: a mixture of {len(self.prior.logits)} Gaussians, kl: one draw; "
            "posterior_kl: iwae_k - elbo of the largest k; clustering_accuracy: components of posterior means against "
            "labels, best one-to-one matching; components_used: of more than half an equal weight"
        )
