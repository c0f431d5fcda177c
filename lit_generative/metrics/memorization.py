"""Whether generated samples are copies of training images, in a space of features.

A distance of a sample is that to the training image nearest to it. Test images, which cannot be copies, say what such
distances are where nothing was memorised.
"""

import torch
from torch import Tensor


def nearest(x: Tensor, others: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Distance to the k-th nearest of ``others`` ``(N, d)`` and its index, float64 and int64 ``(M,)``."""
    others = others.double()
    found = [torch.cdist(rows, others).topk(k, largest=False) for rows in x.double().split(200)]
    return torch.cat([f.values[:, -1] for f in found]), torch.cat([f.indices[:, -1] for f in found])


def authentic_share(samples: Tensor, train: Tensor) -> float:
    """The share of samples ``(M, d)`` that are further from the training image nearest to them than that image is from
    the training image nearest to it (Alaa et al., 2022, arXiv:2102.08921); of copies it is 0.
    """
    distances, index = nearest(samples, train)
    of_train, _ = nearest(train[index], train, k=2)  # the first is the image itself
    return float((distances > of_train).double().mean())


def rank_sum_score(x: Tensor, y: Tensor) -> float:
    """The z-score of Mann and Whitney's U of ``x`` ``(m,)`` against ``y`` ``(n,)``: negative where x is the smaller."""
    from scipy.stats import rankdata

    m, n = len(x), len(y)
    ranks = rankdata(torch.cat([x, y]).numpy())
    u = ranks[:m].sum() - m * (m + 1) / 2
    return float((u - m * n / 2) / (m * n * (m + n + 1) / 12) ** 0.5)


def data_copying(
    samples: Tensor, test: Tensor, train: Tensor, cells: int = 10, least: int = 20, seed: int = 0
) -> float:
    """C_T (Meehan et al., 2020, arXiv:2004.05675): below -3 or so if samples are nearer to training images than test
    images are, about 0 if as near, positive if further away (samples of poor quality are).

    The z-score of `rank_sum_score` in cells of a k-means clustering of the training images, averaged by the test
    images in each; cells with fewer than ``least`` samples or test images are left out.

    Args:
        samples: Features of samples ``(M, d)``.
        test: Features of images that were not trained on ``(N, d)``.
        train: Features of training images ``(T, d)``.
        cells: Clusters.
        least: Samples and test images that a cell needs.
        seed: Seed of the clustering.

    Returns:
        NaN if no cell has enough.
    """
    from scipy.cluster.vq import kmeans2

    centres, _ = kmeans2(train.double().numpy(), cells, iter=20, minit="++", seed=seed)
    cell = {name: nearest(x, torch.from_numpy(centres))[1] for name, x in (("samples", samples), ("test", test))}
    distance = {name: nearest(x, train)[0] for name, x in (("samples", samples), ("test", test))}
    total, weight = 0.0, 0
    for i in range(cells):
        own = {name: distance[name][cell[name] == i] for name in distance}
        if min(map(len, own.values())) >= least:
            total += len(own["test"]) * rank_sum_score(own["samples"], own["test"])
            weight += len(own["test"])
    return total / weight if weight else float("nan")
