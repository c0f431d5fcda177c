"""Seconds of one Fréchet distance at 2048 dimensions, float64: ours, torchmetrics', and scipy's matrix square root.

    python benchmarks/frechet.py [--dims 2048] [--rounds 5] [--threads 2]

With 10,000 samples of each law the covariances are regular; with 1,000 they are singular, and ours takes the features.
The relative error is against scipy's square root, and at 1,000 against the nuclear norm of the features' product too.
"""

import argparse
import statistics
import time

import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import _compute_fid

from lit_generative.metrics.frechet import Gaussian, frechet_distance


def timed(function, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        value = float(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times), value


def by_square_root(p, q):
    root = sqrtm((p.covariance @ q.covariance).numpy())
    mean = (p.mean - q.mean).square().sum()
    return mean + p.covariance.trace() + q.covariance.trace() - 2 * root.trace().real


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    mixing = torch.randn(args.dims, args.dims) / args.dims**0.5 * torch.linspace(0.1, 2, args.dims)
    print(f"{'samples':>8} {'method':<26} {'s':>7} {'distance':>14} {'ratio':>7} {'error':>9}")
    for n in (10_000, 1000):
        x, y = torch.randn(n, args.dims) @ mixing, 1.1 * torch.randn(n, args.dims) @ mixing + 0.02
        p, q = Gaussian.of(x), Gaussian.of(y)
        bare = [g._replace(rows=g.rows[:0]) for g in (p, q)]
        rows = {
            "ours": timed(lambda p=p, q=q: frechet_distance(p, q), args.rounds),
            "ours, moments only": timed(lambda pair=bare: frechet_distance(*pair), args.rounds),
            "torchmetrics": timed(
                lambda p=p, q=q: _compute_fid(p.mean, p.covariance, q.mean, q.covariance), args.rounds
            ),
            "scipy.linalg.sqrtm": timed(lambda p=p, q=q: by_square_root(p, q), 1),
        }
        exact = rows["scipy.linalg.sqrtm"][1]
        for name, (seconds, value) in rows.items():
            ratio = rows["torchmetrics"][0] / seconds
            print(
                f"{n:>8} {name:<26} {seconds:7.2f} {value:14.6f} {ratio:6.1f}x {abs(value / exact - 1):9.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
