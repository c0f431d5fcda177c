r"""Likelihoods p(x|h) of discrete images, given the numbers ``h`` that a network puts out for every pixel.

Each is a probability **mass** over a pixel's levels, so that log-probabilities of different models can be compared:
the masses of all levels sum to 1. Networks give ``(..., P * C, H, W)``, with P parameters per pixel, and
``log_prob(x)`` broadcasts images ``x`` of shape ``(..., C, H, W)`` and sums over pixels to nats ``(...)``.
"""

import math
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_generative.utils.precision import at_least_float32


class Likelihood(Protocol):
    parameters: int  # numbers per pixel that the network must give
    num_levels: int  # values that a pixel can take: k / (levels - 1)

    def __init__(self, h: Tensor) -> None: ...
    def log_prob(self, x: Tensor) -> Tensor: ...
    @property
    def mean(self) -> Tensor: ...
    def sample(self) -> Tensor: ...


class Bernoulli:
    """Binary pixels: P(x = 1) = sigmoid(logits). Not a likelihood of grey levels: binarise the data first."""

    parameters = 1
    num_levels = 2

    def __init__(self, h: Tensor) -> None:
        self.logits = at_least_float32(h)

    def log_prob(self, x: Tensor) -> Tensor:
        return (x * self.logits - F.softplus(self.logits)).sum((-3, -2, -1))

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def sample(self) -> Tensor:
        return torch.bernoulli(self.mean)


class _Discretized:
    """A density on the line, its mass gathered on the 256 levels k/255; the outer bins reach to infinity."""

    parameters = 2
    num_levels = 256

    def __init__(self, h: Tensor) -> None:
        mean, log_scale = at_least_float32(h).chunk(2, dim=-3)
        self.location = mean + 0.5  # a network that puts out zeros starts at mid-grey
        # The floor is that of PixelCNN++ (Salimans et al., 2017), -7 for values in [-1, 1]: one bin then holds 97 % of
        # a logistic's mass. Above the ceiling the distribution is seven times wider than the range of its values.
        self.log_scale = (log_scale - 2).clamp(min=-7 - math.log(2), max=2)

    def _edges(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both edges of the bin of ``x``, standardised."""
        precision = torch.exp(-self.log_scale)
        centred = x - self.location
        return (centred - 1 / 510) * precision, (centred + 1 / 510) * precision

    @classmethod
    def at(cls, location: Tensor, scale: Tensor) -> Self:
        """The distribution of that location ``(..., C, H, W)`` and scale, which broadcasts, in units of [0, 1]."""
        return cls(torch.cat([location - 0.5, (scale.log() + 2).expand_as(location)], dim=-3))

    @property
    def mean(self) -> Tensor:
        """The location, cut to [0, 1]: the median; also the mean where the mass is away from black and white."""
        return self.location.clamp(0, 1)

    def _quantize(self, noise: Tensor) -> Tensor:
        x = self.location + self.log_scale.exp() * noise
        return x.mul(255).round().clamp(0, 255).div(255)


class DiscretizedLogistic(_Discretized):
    """Logistic distribution on 256 levels (Kingma et al., 2016, App. B; Salimans et al., 2017, Eq. 2)."""

    def log_prob(self, x: Tensor) -> Tensor:
        low, high = self._edges(x)
        # sigmoid(high) - sigmoid(low) = sigmoid(high) sigmoid(-low) (1 - exp(low - high)), which never cancels
        log_below, log_above = F.logsigmoid(high), F.logsigmoid(-low)
        width = high - low
        inner = log_below + log_above + torch.log(-torch.expm1(-width))
        return torch.where(x <= 0, log_below, torch.where(x >= 1, log_above, inner)).sum((-3, -2, -1))

    def sample(self) -> Tensor:
        u = torch.rand_like(self.location).clamp(1e-7, 1 - 1e-7)  # logit(0) and logit(1) are infinite
        return self._quantize(torch.logit(u))


def _log_ndtr(z: Tensor) -> Tensor:
    """log of the standard normal CDF; the gradient of torch.special.log_ndtr is wrong beyond z = -1000 in float32."""
    tail = z.clamp(max=0)
    below = torch.log(torch.special.erfcx(-tail * math.sqrt(0.5)) / 2) - tail.square() / 2
    return torch.where(z < 0, below, torch.log1p(-torch.special.ndtr(-z.clamp(min=0))))


class DiscretizedGaussian(_Discretized):
    """Gaussian distribution on 256 levels (Ho et al., 2020, Eq. 13)."""

    def log_prob(self, x: Tensor) -> Tensor:
        low, high = self._edges(x)
        log_below, log_above = _log_ndtr(high), _log_ndtr(-low)
        # A bin beside the mean, mirrored to the right of it, lies between near and far. Taking exp(-near^2 / 2) out of
        # both tails leaves a difference of scaled error functions that does not underflow, and loses at most 2e-3
        # nats to cancellation in float32, at the ceiling of the scale.
        near = torch.maximum(low, -high).clamp(min=0)
        width = high - low
        tails = torch.special.erfcx(near * math.sqrt(0.5)) - torch.special.erfcx(
            (near + width) * math.sqrt(0.5)
        ) * torch.exp(-width * (near + width / 2))
        beside = torch.log(tails / 2) - near.square() / 2
        around = torch.special.ndtr(high) - torch.special.ndtr(low)
        inner = torch.where(near > 0, beside, torch.where(near > 0, 1, around).log())
        return torch.where(x <= 0, log_below, torch.where(x >= 1, log_above, inner)).sum((-3, -2, -1))

    def sample(self) -> Tensor:
        return self._quantize(torch.randn_like(self.location))


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "logistic": DiscretizedLogistic,
    "gaussian": DiscretizedGaussian,
}


def in_bits(num_levels: int) -> bool:
    """Whether ``bpd`` is logged beside ``nll``: not for binary pixels, which are compared in nats per image."""
    return num_levels > 2


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """Nats per image to bits per dimension, -log_prob / (dims ln 2), any shape.

    >>> float(bits_per_dim(torch.tensor(-784 * 8 * math.log(2)), 784))
    8.0
    """
    return -log_prob / (dims * math.log(2))


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) of vectors ``(B, D)``, nats ``(B,)``."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


def nan_to_neg_inf(log_p: Tensor) -> Tensor:
    """Log-densities, -inf in place of NaN and of +inf: what a broken image gets must not look likely, nor vanish."""
    return torch.where(log_p < math.inf, log_p, -math.inf)


def log_mean_exp(log_w: Tensor, dim: int) -> Tensor:
    """log (1/K sum_k w_k) along ``dim``, without leaving log space."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])
