"""The Frechet distance between two sets of feature vectors."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.metrics.aggregation import PerImage
from lit_generative.utils.precision import exact


class Gaussian(NamedTuple):
    """The first two moments of ``n`` feature vectors, and in ``rows`` some of these vectors, or all."""

    n: int  # 0: not known
    mean: Tensor  # (d,) float64
    covariance: Tensor  # (d, d) float64, unbiased
    rows: Tensor  # (m, d) float32, m <= n

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Fit to features ``(n, d)``."""
        x = features.to(torch.float64)
        return cls(len(x), x.mean(0), torch.cov(x.T), features)

    def root(self) -> Tensor | None:
        """R ``(n, d)`` with R'R the covariance, if ``rows`` has all ``n`` vectors, and no more than dimensions."""
        if not 1 < len(self.rows) == self.n <= len(self.mean):
            return None
        return (self.rows.to(torch.float64) - self.mean) / (self.n - 1) ** 0.5


class Features(PerImage):
    """Moments of feature vectors, float64, over all ranks, and the vectors of images of index below ``keep``."""

    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, dims: int, keep: int = 0) -> None:
        super().__init__()
        self.keep = keep
        for name, shape in (("count", ()), ("total", (dims,)), ("outer", (dims, dims))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rows: Tensor, index: Tensor) -> None:
        x = exact(rows)
        self.count += len(x)
        self.total += x.sum(0)
        self.outer += x.T @ x
        super().update(rows[index < self.keep].float(), index[index < self.keep])

    def compute(self) -> Gaussian:
        """Moments of all images and the vectors that are kept, on the CPU."""
        mean = self.total / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Gaussian(int(self.count), mean.cpu(), covariance.cpu(), super().compute())


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """|mu_p - mu_q|^2 + tr(S_p + S_q - 2 (S_p S_q)^(1/2)) (Dowson & Landau, 1982; Heusel et al., 2017), float64.

    With S_p = R'R, the trace of the square root is the sum of the square roots of the eigenvalues of R S_q R', which
    is symmetric. R comes from the features where they are fewer than dimensions (S_p is singular then), else from
    Cholesky's factor.
    """
    if p.mean.shape != q.mean.shape:
        raise UserError(f"features must have as many dimensions in both sets, got {len(p.mean)} and {len(q.mean)}")
    r, s = p.root(), q.root()
    if r is not None and s is not None:  # two sets of few images: the nuclear norm of the roots' product
        trace = torch.linalg.svdvals(r @ s.T).sum()
    else:
        root, other = (s, p) if s is not None else (_square_root(p.covariance) if r is None else r, q)
        trace = torch.linalg.eigvalsh(root @ other.covariance @ root.T).clamp(min=0).sqrt().sum()
    distance = (p.mean - q.mean).square().sum() + p.covariance.trace() + q.covariance.trace() - 2 * trace
    return float(distance)


def _square_root(covariance: Tensor) -> Tensor:
    """R with R'R = ``covariance``, also where it is singular."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return factor.T
    values, vectors = torch.linalg.eigh(covariance)
    present = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return (vectors[:, present] * values[present].sqrt()).T
