"""Metrics of generated against real images in a space of features, each of them one class.

`callbacks.evaluation._feature_metrics` computes the features, and logs and reports the numbers.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lit_generative.metrics.frechet import Gaussian, frechet_distance


class TwoSampleMetric(ABC):
    """A metric of one or more numbers.

    ``reported`` has the names of its numbers, with ``{}`` in place of the extractor's name, and the format of each in
    the row of results. Names without ``{}`` are logged for the first extractor only.
    """

    reported: ClassVar[dict[str, str]]
    in_validation: ClassVar[bool] = False  # else in test only
    vectors: ClassVar[int] = 0  # feature vectors that it needs of either side; 0: it needs moments only

    @abstractmethod
    def measure(self, fake: Gaussian, real: Gaussian, x: Tensor, y: Tensor) -> dict[str, float]:
        """The numbers by name, from moments of all images and feature vectors of some, ``(M, d)`` and ``(N, d)``."""

    @abstractmethod
    def describe(self, m: int, n: int) -> str:
        """How the numbers are computed from ``m`` and ``n`` feature vectors, for the protocol; may be empty."""


class FrechetDistance(TwoSampleMetric):
    """FID (Heusel et al., 2017)."""

    reported: ClassVar = {"fid_{}": ".2f"}
    in_validation = True

    def measure(self, fake: Gaussian, real: Gaussian, x: Tensor, y: Tensor) -> dict[str, float]:
        return {"fid_{}": frechet_distance(real, fake)}

    def describe(self, m: int, n: int) -> str:
        return ""


class KernelDistance(TwoSampleMetric):
    """KID (Binkowski et al., 2018): mean and deviation over random subsets of the squared MMD, polynomial kernel.

    Args:
        subsets: Number of random subsets.
        size: Images in each, at most.
        seed: Seed of the subsets.
    """

    reported: ClassVar = {"kid_{}": ".4f"}
    vectors = 6

    def __init__(self, subsets: int = 100, size: int = 1000, seed: int = 0) -> None:
        self.subsets, self.size, self.seed = subsets, size, seed

    def measure(self, fake: Gaussian, real: Gaussian, x: Tensor, y: Tensor) -> dict[str, float]:
        kid, deviation = kernel_distance(x, y, self.subsets, self.size, self.seed)
        return {"kid_{}": kid, "kid_{}_std": deviation}

    def describe(self, m: int, n: int) -> str:
        return f"KID: {self.subsets} subsets of {min(self.size, m, n)}"


class PrecisionRecall(TwoSampleMetric):
    """Improved precision and recall (Kynkaanniemi et al., 2019).

    Args:
        k: Nearest neighbours that define the manifold of a set.
    """

    reported: ClassVar = {"precision": ".3f", "recall": ".3f"}
    vectors = 6

    def __init__(self, k: int = 3) -> None:
        self.k = k

    def measure(self, fake: Gaussian, real: Gaussian, x: Tensor, y: Tensor) -> dict[str, float]:
        return dict(zip(self.reported, precision_recall(x, y, self.k), strict=True))

    def describe(self, m: int, n: int) -> str:
        return f"precision, recall (k = {self.k}): {m:,} samples, {n:,} images"


class DensityCoverage(TwoSampleMetric):
    """Density and coverage (Naeem et al., 2020).

    Args:
        k: Nearest neighbours that define the ball of a real image.
    """

    reported: ClassVar = {"density": ".3f", "coverage": ".3f"}
    vectors = 6

    def __init__(self, k: int = 5) -> None:
        self.k = k

    def measure(self, fake: Gaussian, real: Gaussian, x: Tensor, y: Tensor) -> dict[str, float]:
        return dict(zip(self.reported, density_coverage(x, y, self.k), strict=True))

    def describe(self, m: int, n: int) -> str:
        return f"density, coverage (k = {self.k}): {m:,} samples, {n:,} images"


# Distances and kernels come from dot products, which lose small differences between large features in float32: float64
# represents the squares of all float32 values.


def kernel_distance(p: Tensor, q: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """KID (Binkowski et al., 2018): mean and deviation over random subsets of the squared MMD, polynomial kernel."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(size, len(p), len(q))
    kid = kid_features_to_metric(
        p.double(), q.double(), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return kid["kernel_inception_distance_mean"], kid["kernel_inception_distance_std"]


def precision_recall(fake: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Fractions of samples in the real manifold and of images in that of samples (Kynkaanniemi et al., 2019)."""
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
