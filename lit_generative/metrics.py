"""Statistics over images that hold on any number of processes, and distances between sets of feature vectors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_generative.errors import UserError
from lit_generative.precision import Move, device_only, exact


class Accumulator(Metric):
    """A metric whose states a training can go on with after a test, which runs in inference mode, has reset them.

    They keep their dtype whatever the model's becomes; float64 stays on the CPU for devices that have none.
    """

    full_state_update = False

    def _apply(self, fn: Move, exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(device_only(fn, self.device), exclude_state)

    def reset(self) -> None:
        with torch.inference_mode(False):
            super().reset()


class Moments(Accumulator):
    """Mean, variance and standard error over images of ``features`` numbers per image, float64, summed over ranks.

    ``update`` takes ``(B, features)``; its accumulation is exact however the images are split into batches or ranks.
    """

    count: Tensor
    total: Tensor
    total_of_squares: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total_of_squares", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        values = exact(values)
        self.count += len(values)
        self.total += values.sum(0)
        self.total_of_squares += values.square().sum(0)

    def compute(self) -> Tensor:
        """Mean, unbiased variance, standard error of the mean and number of images, ``(4, features)``."""
        mean = self.total / self.count
        variance = (self.total_of_squares - self.count * mean.square()).clamp(min=0) / (self.count - 1).clamp(min=1)
        variance = variance.nan_to_num(nan=torch.inf)  # where a value was infinite
        return torch.stack([mean, variance, (variance / self.count).sqrt(), self.count.expand_as(mean)])


class Gaussian(NamedTuple):
    """The first two moments of ``n`` feature vectors; ``rows`` holds some of the vectors themselves, or all."""

    n: int  # 0 where it is not known
    mean: Tensor  # (d,) float64
    covariance: Tensor  # (d, d) float64, unbiased
    rows: Tensor  # (m, d) float32, m <= n

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Fit to features ``(n, d)``."""
        x = features.to(torch.float64)
        return cls(len(x), x.mean(0), torch.cov(x.T), features)

    def root(self) -> Tensor | None:
        """R ``(n, d)`` with R'R the covariance, if all ``n`` vectors are at hand and not more than dimensions."""
        if not 1 < len(self.rows) == self.n <= len(self.mean):
            return None
        return (self.rows.to(torch.float64) - self.mean) / (self.n - 1) ** 0.5


class PerImage(Accumulator):
    """Rows of numbers, one for each image, in the images' order however they are split into batches and ranks.

    ``update`` takes the rows ``(B, d)`` and the images' numbers ``(B,)``, each in one batch of one rank.
    """

    rows: list[Tensor]
    index: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("index", [], dist_reduce_fx="cat")

    def update(self, rows: Tensor, index: Tensor) -> None:
        self.rows.append(rows)
        self.index.append(index.to(rows.device))

    def compute(self) -> Any:
        """All rows, ``(N, d)``, on the CPU."""
        return dim_zero_cat(self.rows)[dim_zero_cat(self.index).argsort()].cpu()


class Features(PerImage):
    """Moments of feature vectors, float64, summed over ranks, and the vectors of the images numbered below ``keep``."""

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
        """The moments of all images and the vectors of those that are kept, on the CPU."""
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
        raise UserError(f"features of {len(p.mean)} and {len(q.mean)} dimensions cannot be compared")
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


# Distances and kernels come from dot products, which lose small differences between large features in float32: float64
# has room for the squares of whatever float32 can tell apart.


def kernel_distance(p: Tensor, q: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """KID (Binkowski et al., 2018): mean and deviation over random subsets of the squared MMD, polynomial kernel."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(size, len(p), len(q))
    kid = kid_features_to_metric(
        p.double(), q.double(), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return kid["kernel_inception_distance_mean"], kid["kernel_inception_distance_std"]


def precision_recall(fake: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Shares of samples within the real manifold and of real images within the samples' (Kynkaanniemi et al., 2019)."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    fake, real = fake.double(), real.double()
    prc = prc_features_to_metric(fake, real, prc_neighborhood=k, save_cpu_ram=True, prc_batch_size=2000, verbose=False)
    return prc["precision"], prc["recall"]


def density_coverage(fake: Tensor, real: Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al., 2020, Eqs. 5 and 6) of samples ``(M, d)`` against images ``(N, d)``."""
    fake, real = fake.double(), real.double()
    radii = torch.cat([torch.cdist(rows, real).kthvalue(k + 1).values for rows in real.split(2000)])  # itself is first
    hits, covered = 0.0, torch.zeros(len(real), dtype=torch.bool)
    for rows in fake.split(2000):
        inside = torch.cdist(rows, real) < radii
        hits += float(inside.sum())
        covered |= inside.any(0)
    return hits / (k * len(fake)), float(covered.float().mean())
