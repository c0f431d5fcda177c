r"""Monte Carlo gradient estimation in machine learning (Mohamed, Rosca, Figurnov & Mnih, 2020), arXiv:1906.10652.

    eta = d/dtheta E_{z ~ N(mu, sigma^2)}[f(z)],  theta = mu or sigma

    score function   E[f(z) d log p(z)/dtheta]                                               Section 4
                     d log p/dmu = eps / sigma,  d log p/dsigma = (eps^2 - 1) / sigma,  z = mu + sigma eps
    pathwise         E[f'(z) dz/dtheta],  dz/dmu = 1,  dz/dsigma = eps                       Section 5
    measure-valued   c (E[f(z+)] - E[f(z-)])                                                 Section 6, Table 1
                     mu:     c = 1 / (sigma sqrt(2 pi)),  z+- = mu +- sigma y,  y ~ Weibull(2, sqrt 2)
                     sigma:  c = 1 / sigma,  z+ = mu + sigma m,  m ~ double-sided Maxwell,  z- ~ N(mu, sigma^2)

The score function asks only for values of f; the pathwise estimator for its derivative; the measure-valued one for two
values of f per number of theta. `EstimatedVAE` trains a VAE's encoder by each of them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Generator, Tensor
from torch.distributions import Normal

from lit_generative.errors import UserError
from lit_generative.models.vae import VAE

Function = Callable[[Tensor], Tensor]  # z ``(n, *batch, D)`` to f(z) ``(n, *batch)``


class Gradient(NamedTuple):
    """d E[f(z)] / d mu and d E[f(z)] / d sigma, each ``(*batch, D)``."""

    mean: Tensor
    scale: Tensor


class Estimator(Protocol):
    """An unbiased estimate of `Gradient` from ``n`` draws for each of a batch of Gaussians ``(*batch, D)``."""

    def __call__(
        self, f: Function, mean: Tensor, scale: Tensor, n: int = 1, generator: Generator | None = None
    ) -> Gradient: ...


def _normal(like: Tensor, n: int, generator: Generator | None) -> Tensor:
    return torch.randn((n, *like.shape), dtype=like.dtype, device=like.device, generator=generator)


def pathwise(f: Function, mean: Tensor, scale: Tensor, n: int = 1, generator: Generator | None = None) -> Gradient:
    """By the derivative of ``f``, which must have one almost everywhere and be continuous (Section 5)."""
    eps = _normal(mean, n, generator)
    with torch.enable_grad():
        z = (mean + scale * eps).detach().requires_grad_()
        (derivative,) = torch.autograd.grad(f(z).sum(), z)
    return Gradient(derivative.mean(0), (derivative * eps).mean(0))


def score_function(
    f: Function,
    mean: Tensor,
    scale: Tensor,
    n: int = 1,
    generator: Generator | None = None,
    control_variate: bool = False,
) -> Gradient:
    """By values of ``f``, of any kind (Section 4).

    Args:
        f: The function.
        mean: mu.
        scale: sigma.
        n: Draws for each Gaussian.
        generator: Of the draws.
        control_variate: Subtract from each value of ``f`` the mean of those of the other draws, which leaves the
            estimate unbiased (Section 7; Kool et al., 2019); for ``n`` >= 2.

    Raises:
        ValueError: There is no other draw.
    """
    eps = _normal(mean, n, generator)
    with torch.no_grad():
        values = f(mean + scale * eps)
    if control_variate:
        if n < 2:
            raise UserError(f"the control variate is the mean of other draws: n must be >= 2, got {n}")
        values = (values - values.mean(0)) * n / (n - 1)
    values = values[..., None]
    return Gradient((values * eps / scale).mean(0), (values * (eps.square() - 1) / scale).mean(0))


def measure_valued(
    f: Function,
    mean: Tensor,
    scale: Tensor,
    n: int = 1,
    generator: Generator | None = None,
    coupled: bool = True,
) -> Gradient:
    """By values of ``f`` at 4 D points, where one number of z at a time is drawn from another law (Section 6).

    Args:
        f: The function.
        mean: mu.
        scale: sigma.
        n: Draws for each Gaussian.
        generator: Of the draws.
        coupled: Make z+ and z- of the same randomness: one Weibull y for both, and for sigma a Gaussian that is its
            Maxwell times a uniform number (Section 7); else they are independent. The variance is lower for sigma,
            and for mu where f is alike on both sides of it (z^2), but twice as high where f is linear.
    """
    z, d = mean + scale * _normal(mean, n, generator), mean.shape[-1]

    def uniform() -> Tensor:
        return torch.rand(z.shape, dtype=z.dtype, device=z.device, generator=generator)

    def values_at(numbers: Tensor) -> Tensor:
        """f of z with one of its numbers replaced, for each of them, ``(n, *batch, D)``."""
        one = torch.eye(d, dtype=torch.bool, device=z.device)
        points = torch.where(one, (mean + scale * numbers)[..., None, :], z[..., None, :])  # (n, *batch, D, D)
        with torch.no_grad():
            return f(points.movedim(-2, 1).flatten(0, 1)).unflatten(0, (n, d)).movedim(1, -1)

    def weibull() -> Tensor:
        return (-2 * torch.log1p(-uniform())).sqrt()

    def maxwell() -> Tensor:
        size = torch.stack([_normal(mean, n, generator) for _ in range(3)]).norm(dim=0)
        return size * torch.where(uniform() < 0.5, -1.0, 1.0)

    y = weibull()
    by_mean = values_at(y) - values_at(-(y if coupled else weibull()))
    m = maxwell()
    by_scale = values_at(m) - values_at(m.abs() * (2 * uniform() - 1) if coupled else _normal(mean, n, generator))
    return Gradient(by_mean.mean(0) / (scale * math.sqrt(2 * math.pi)), by_scale.mean(0) / scale)


def bernoulli_score_function(f: Function, logits: Tensor, n: int, generator: Generator | None = None) -> Tensor:
    """d E[f(z)] / d logits of z ~ Bernoulli(sigmoid(logits)), ``(*batch, D)``, which has no pathwise estimate.

    The control variate is that of `score_function`, so that ``n`` must be >= 2.
    """
    if n < 2:
        raise UserError(f"the control variate is the mean of other draws: n must be >= 2, got {n}")
    p = logits.sigmoid()
    z = torch.bernoulli(p.expand(n, *p.shape), generator=generator)
    with torch.no_grad():
        values = f(z)
    return ((values - values.mean(0))[..., None] * (z - p)).sum(0) / (n - 1)


ESTIMATORS: dict[str, Estimator] = {
    "pathwise": pathwise,
    "score_function": score_function,
    "measure_valued": measure_valued,
}


class EstimatedVAE(VAE):
    """A VAE whose encoder learns the reconstruction by a choice of estimator; all else is the VAE's.

    With ``pathwise`` it is the VAE to the bit. Validation logs ``gradient_variance``: the variance of one image's
    gradient by the posterior's means and scales, summed over these, from two independent estimates.

    Args:
        gradient: The estimator.
        draws: Draws of z per image in a step; ``score_function`` has a control variate from two on.
        vae: Arguments of `VAE`.
    """

    compiled_functions = ()

    def __init__(
        self,
        *,
        gradient: Literal["pathwise", "score_function", "measure_valued"] = "pathwise",
        draws: int = 1,
        **vae: Any,
    ) -> None:
        if draws < 1:
            raise UserError(f"draws must be >= 1, got {draws}")
        super().__init__(**vae)
        self.gradient, self.draws = gradient, draws

    def estimate(self, x: Tensor, q: Normal, c: Tensor | None = None) -> Gradient:
        """The gradient of E_q[-log p(x|z)] by the posterior's means and scales, each ``(B, latent)``."""
        estimator = ESTIMATORS[self.gradient]
        if estimator is score_function and self.draws > 1:
            estimator = partial(score_function, control_variate=True)
        return estimator(lambda z: -self.log_likelihood(x, z, c), q.loc.detach(), q.scale.detach(), self.draws)

    def reconstruction(self, x: Tensor, q: Normal, c: Tensor | None = None) -> Tensor:
        if self.gradient == "pathwise" and self.draws == 1:
            return super().reconstruction(x, q, c)
        value = -self.log_likelihood(x, q.sample((self.draws,)), c).mean(0)  # from which the decoder learns
        eta = self.estimate(x, q, c)
        direction = (eta.mean * q.loc + eta.scale * q.scale).sum(-1)  # its gradient by the encoder is the estimate's
        return value + direction - direction.detach()

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        values = super().evaluate(x, c, stage)
        if stage == "val":
            with torch.inference_mode(False), torch.no_grad():
                x = x.clone()  # one that autograd may see
                q = self.q(x, c)
                one, other = (torch.cat(self.estimate(x, q, c), -1) for _ in range(2))
            values["gradient_variance"] = (one - other).square().sum(-1) / 2
        return values
