"""The variance of stochastic gradient estimators: against the number of draws, and against sigma.

    python benchmarks/gradient_estimators.py [--output docs/images/gradient_variance.png] [--repetitions 1000]

eta = d/dmu E[f(z)], z ~ N(mu, sigma^2), mu = 0.5, for f(z) = z, z^2, a step at 1 and sin(5 z); after Mohamed et al.
(2020). Lines are analytic variances where they are known, points are measured over repetitions. The
table has sigma = 1 and ``values``, how often f is asked for one estimate.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt

from lit_generative.models.gradient_estimators import measure_valued, pathwise, score_function

MU = 0.5
COUNTS = (1, 10, 100, 1000, 10_000)
SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0)
FUNCTIONS = {
    "z": lambda z: z,
    "z^2": torch.square,
    "step": lambda z: (z > 1).to(z),
    "sin 5z": lambda z: (5 * z).sin(),
}
ESTIMATORS = {
    "pathwise": pathwise,
    "score function": score_function,
    "score function, control variate": partial(score_function, control_variate=True),
    "measure-valued": measure_valued,
    "measure-valued, independent": partial(measure_valued, coupled=False),
}
# of one draw, by sigma
ANALYTIC = {
    ("z", "score function"): lambda s: MU**2 / s**2 + 2,
    ("z", "measure-valued"): lambda s: (4 - math.pi) / math.pi,
    ("z^2", "pathwise"): lambda s: 4 * s**2,
    ("z^2", "score function"): lambda s: MU**4 / s**2 + 14 * MU**2 + 15 * s**2,
    ("z^2", "measure-valued"): lambda s: 4 * MU**2 * (4 - math.pi) / math.pi,
}


def of_first(f, z):
    return f(z[..., 0])


def variance(name, function, n, sigma, repetitions):
    """Over repetitions; None where the estimator cannot be had."""
    control, step = "control" in name, function == "step"
    if (control and n < 2) or (name == "pathwise" and step):
        return None
    generator = torch.Generator().manual_seed(0)
    parts = []
    for rows in torch.arange(repetitions).split(max(1, 1_000_000 // n)):
        mean = torch.full((len(rows), 1), MU, dtype=torch.float64)
        f = partial(of_first, FUNCTIONS[function])
        parts.append(ESTIMATORS[name](f, mean, torch.full_like(mean, sigma), n, generator).mean)
    return float(torch.cat(parts).var())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/images/gradient_variance.png"))
    parser.add_argument("--repetitions", type=int, default=1000)
    args = parser.parse_args()
    figure, axes = plt.subplots(2, len(FUNCTIONS), figsize=(14, 6.5), layout="constrained")
    print(f"| f | estimator | values | {' | '.join(f'n = {n:,}' for n in COUNTS)} | analytic, n = 1 |")
    print(f"|---|---|---:|{'---:|' * (len(COUNTS) + 1)}")
    for (top, bottom), function in zip(axes.T, FUNCTIONS, strict=True):
        for i, name in enumerate(ESTIMATORS):
            found = [variance(name, function, n, 1.0, args.repetitions) for n in COUNTS]
            over_sigma = [variance(name, function, 2, s, args.repetitions) for s in SIGMAS]
            exact = ANALYTIC.get((function, name))
            values = "2 n" if "measure" in name else "n, and f'" if name == "pathwise" else "n"
            cells = ["" if v is None else f"{v:.2g}" for v in found] + [f"{exact(1.0):.2g}" if exact else ""]
            print(f"| {function} | {name} | {values} | {' | '.join(cells)} |")
            for axis, places, points, scale in (
                (top, COUNTS, found, lambda n: (n, 1.0)),
                (bottom, SIGMAS, over_sigma, lambda s: (2, s)),
            ):
                shown = [(x, v) for x, v in zip(places, points, strict=True) if v]
                if shown:
                    axis.loglog(*zip(*shown, strict=True), "o^vsD"[i], color=f"C{i}", ms=5, label=name)
                if exact:
                    axis.loglog(places, [exact(s) / n for n, s in map(scale, places)], color=f"C{i}", lw=1)
        top.set(title=f"f(z) = {function}", xlabel="draws n")
        bottom.set(xlabel="sigma, at n = 2", xlim=(0.08, 3.8))
    for axis in axes[:, 0]:
        axis.set_ylabel("variance of the estimate")
    axes[0, 1].legend(fontsize=7)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=90)
    print(f"seed 0, {args.repetitions} repetitions: {args.output}")


if __name__ == "__main__":
    main()
