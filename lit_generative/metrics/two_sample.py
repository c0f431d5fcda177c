"""Comparisons of samples and images by their feature vectors, beside the Frechet distance."""

import torch
from torch import Tensor

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
