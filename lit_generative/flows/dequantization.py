r"""Dequantization of 8-bit images: turns a density into a lower bound on the probability of a discrete image.

With x = k/255, v = (k + u)/256 and D pixels (Theis et al., 2016, arXiv:1511.01844; Ho et al., 2019, arXiv:1902.00275),

    log P(x) = log E_q(u|x)[ p(v) / (256^D q(u|x)) ]  >=  E_q(u|x)[ log p(v) - log q(u|x) ] - D log 256

Every ``forward`` returns v and ``log_det`` = -log q(u|x) - D log 256, ``(B,)`` in nats; log p(v) + log_det is an
unbiased estimate of the bound, and the log-mean-exp of K such estimates is a tighter bound in expectation.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_generative.flows.bijections import Bijection
from lit_generative.flows.coupling import Coupling
from lit_generative.images import to_symmetric

# k + u < 256 has a resolution of 2^-16 in float32: up to here it never rounds to the next level
LARGEST = 1 - 2**-16


def quantize(v: Tensor) -> Tensor:
    """The level k/255 whose bin [k/256, (k + 1)/256) contains v, any shape; values outside [0, 1) are clamped."""
    return v.mul(256).floor().clamp(0, 255).div(255)


def dequantize(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """v = (k + u)/256 of images ``x`` = k/255 and its log-determinant, -D log 256."""
    v = (x.mul(255).round() + u) / 256
    return v, x.new_full((len(x),), -x[0].numel() * math.log(256))


class UniformDequantization(nn.Module):
    """u ~ U[0, 1), drawn anew in every call (Theis et al., 2016, Section 3.1)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, H, W)`` with levels k/255 to v in [0, 1)."""
        return dequantize(x, torch.rand_like(x).clamp_(max=LARGEST))

    def inverse(self, v: Tensor) -> Tensor:
        return quantize(v)


class VariationalDequantization(nn.Module):
    """u ~ q(u|x) by a flow conditioned on the image (Ho et al., 2019, Section 3.1); the identity flow is uniform.

    Args:
        couplings: Layers of the flow; their conditioners take the image in [-1, 1] as context.
    """

    def __init__(self, *couplings: Coupling) -> None:
        super().__init__()
        self.couplings, self.logit = nn.ModuleList(couplings), Logit(0.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, H, W)`` with levels k/255 to v in [0, 1)."""
        h, log_det = self.logit(torch.rand_like(x).clamp_(min=2**-25))  # the logit of 0 is infinite
        for coupling in self.couplings:
            h, change = coupling(h, to_symmetric(x))
            log_det = log_det + change
        u, change = self.logit.inverse(h)
        v, to_bins = dequantize(x, u * LARGEST)
        return v, log_det + change + x[0].numel() * math.log(LARGEST) + to_bins

    def inverse(self, v: Tensor) -> Tensor:
        return quantize(v)


class Logit(Bijection):
    r"""y = logit(alpha + (1 - 2 alpha) v) from [0, 1] to the real line (Dinh et al., 2017, Section 4.1, symmetrized).

    Args:
        alpha: Distance of the logit's argument from 0 and 1: 0.05 in the paper; a small one spreads black backgrounds.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # computed from either end, because 1 - low would lose precision near 1
        low = torch.log(self.alpha + (1 - 2 * self.alpha) * x)
        high = torch.log(self.alpha + (1 - 2 * self.alpha) * (1 - x))
        return low - high, (math.log(1 - 2 * self.alpha) - low - high).flatten(1).sum(1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        low, high = F.logsigmoid(z), F.logsigmoid(-z)
        log_det = (low + high - math.log(1 - 2 * self.alpha)).flatten(1).sum(1)
        return (low.exp() - self.alpha) / (1 - 2 * self.alpha), log_det
