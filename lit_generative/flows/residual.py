r"""Residual blocks z = x + g(x) with Lip(g) < 1, which are invertible (Behrmann et al., 2019, arXiv:1811.00995).

    log|det(I + J)| = sum_k (-1)^(k+1) tr(J^k) / k,  J = dg/dx                               Behrmann et al., Eq. 4
    tr(J^k)         = E_v[v' J^k v],  v ~ N(0, I)                                            Hutchinson
    sum_k a_k       = E_N[sum_(k <= N) a_k / P(N >= k)]                                      Chen et al. (2019), Eq. 6
    its gradient    = E[w' dJ v],  w' = sum_(k >= 0) (-1)^k v' J^k                           ibid., Eq. 8

The last sum is Neumann's series of (I + J)^-1: its terms need no graph, so that memory does not grow with their number.
"""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.flows.bijections import Bijection, zero_log_det
from lit_generative.nn.lipschitz import LipschitzNetwork, Product, SpectralLayer
from lit_generative.utils.precision import at_least_float32

Trace = Literal["unbiased", "truncated", "exact"]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of ``(B, ...)``, ``(B,)``."""
    return at_least_float32(a * b).flatten(1).sum(1)


class Terms:
    """How many terms of the series are computed, and what each is divided by.

    Args:
        kept: Terms that are always computed.
        stop: Probability of ending after each further one (Russian roulette); 1: never go on, which is biased.
    """

    def __init__(self, kept: int, stop: float) -> None:
        if kept < 1 or not 0 < stop <= 1:
            raise UserError(f"terms must be >= 1 and the probability to stop in (0, 1], got {kept} and {stop}")
        self.kept, self.stop = kept, stop

    def draw(self) -> list[float]:
        """P(N >= k) of the terms k = 1, ..., N of one draw of N."""
        more = 0 if self.stop == 1 else int(torch.distributions.Geometric(self.stop).sample())
        return [1.0] * self.kept + [(1 - self.stop) ** i for i in range(1, more + 1)]


class Residual(Bijection):
    """x + g(x), the log-determinant exact or estimated by one draw of v, and inverted by iterating x = z - g(x).

    Args:
        g: A network of Lipschitz constant below 1, smooth, that can be linearised.
        trace: ``unbiased``, by Russian roulette; ``truncated`` after the terms that are always computed, biased;
            ``exact``, by the Jacobian, for few dimensions.
        train_terms: Terms always computed in training.
        eval_terms: The same in evaluation.
        stop: Probability of ending after each further one.
        tolerance: Largest change of a number at which the inverse is found.
        iterations: Most iterations of the inverse.

    ``iterated`` is the number of iterations that the last inverse took. In evaluation both directions are in the
    precision of the weights, also under autocast: g rounded to bfloat16 has no fixed point to find.
    """

    iterated: int = 0

    def __init__(
        self,
        g: LipschitzNetwork | SpectralLayer,
        trace: Trace = "unbiased",
        train_terms: int = 2,
        eval_terms: int = 20,
        stop: float = 0.5,
        tolerance: float = 1e-5,
        iterations: int = 1000,
    ) -> None:
        super().__init__()
        stop = 1.0 if trace == "truncated" else stop
        self.g, self.trace, self.tolerance, self.iterations = g, trace, tolerance, iterations
        self.terms = {True: Terms(train_terms, stop), False: Terms(eval_terms, stop)}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with nullcontext() if self.training else torch.autocast(x.device.type, enabled=False):
            g, product = self.g.linearize(x)
            log_det = self.exact_log_det(x, product) if self.trace == "exact" else self.estimated_log_det(x, product)
        return x + g, log_det

    def exact_log_det(self, x: Tensor, product: Product) -> Tensor:
        """log|det(I + J)| by the rows of J, ``(B,)``."""
        rows = torch.eye(x[0].numel(), device=x.device, dtype=x.dtype).view(-1, *x.shape[1:])
        jacobian = at_least_float32(torch.stack([product(row.expand_as(x)).flatten(1) for row in rows], 1))
        return torch.linalg.slogdet(torch.eye(len(rows)).to(jacobian) + jacobian).logabsdet

    def estimated_log_det(self, x: Tensor, product: Product) -> Tensor:
        """The series at one v and one N, ``(B,)``, and Neumann's series as its gradient."""
        v = torch.randn_like(x)
        w, neumann, total = v, v, zero_log_det(x)
        with torch.no_grad():
            for k, kept in enumerate(self.terms[self.training].draw(), 1):
                w = product(w)  # v' J^k
                sign = 1 if k % 2 else -1
                total = total + sign / (k * kept) * dot(w, v)
                neumann = neumann - sign / kept * w
        if not torch.is_grad_enabled():
            return total
        slope = dot(product(neumann), v)
        return total + slope - slope.detach()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x, found to `tolerance`, and minus the log-determinant there."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            x, self.iterated = z - self.g(z), 1
            while self.iterated < self.iterations:
                before, x = x, z - self.g(x)
                self.iterated += 1
                if (x - before).abs().max() < self.tolerance:
                    break
        return x, -self.forward(x)[1]
