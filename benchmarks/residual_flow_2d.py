"""Densities of the plane by a residual flow: three data sets.

    python benchmarks/residual_flow_2d.py [--steps 1500] [--output docs/images/residual_flow_2d.png] [--threads 1]

Sixteen blocks of 2-128-2 with act norm, and exact log-determinants, which two dimensions allow: with one hidden layer
and the exact gradient the blocks bend most in a given time.
"""

import argparse
import math
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt

from lit_generative.flows.bijections import ActNorm, Chain
from lit_generative.flows.residual import Residual
from lit_generative.likelihoods import standard_normal
from lit_generative.nn.lipschitz import lipschitz_mlp

REACH = 4.0


def checkerboard(n):
    x = 8 * torch.rand(n) - 4
    column = x.div(2).floor() % 2
    row = torch.randint(0, 2, (n,)) * 4 - 4 + 2 * column
    return torch.stack([x, row + 2 * torch.rand(n)], 1)


def pinwheel(n):
    arm = torch.randint(0, 5, (n,))
    radius, side = 1 + 0.3 * torch.randn(n), 0.1 * torch.randn(n)
    angle = arm * 2 * math.pi / 5 + 0.25 * radius.exp()
    return 2 * torch.stack([radius * angle.cos() - side * angle.sin(), radius * angle.sin() + side * angle.cos()], 1)


def eight_gaussians(n):
    angle = torch.randint(0, 8, (n,)) * math.pi / 4
    return 2.8 * torch.stack([angle.cos(), angle.sin()], 1) + 0.35 * torch.randn(n, 2)


def train(draw, steps):
    """The flow, in evaluation mode, and the seconds that it took."""
    torch.manual_seed(0)
    blocks = [Residual(lipschitz_mlp(2, 128, 1, 0.99, first=True), "exact") for _ in range(16)]
    flow = Chain(*(layer for block in blocks for layer in (ActNorm(2), block)), ActNorm(2))
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = time.perf_counter()
    for _ in range(steps):
        z, log_det = flow(draw(256))
        optimizer.zero_grad()
        (-(standard_normal(z) + log_det).mean()).backward()
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    return flow.eval(), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=Path("docs/images/residual_flow_2d.png"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    axis = torch.linspace(-REACH, REACH, 160)
    points = torch.cartesian_prod(axis, axis)
    figure, axes = plt.subplots(3, 3, figsize=(8, 8), layout="constrained")
    print("| data | seconds | nats | integral over the square | iterations of the inverse |\n|---|---:|---:|---:|---:|")
    for row, draw in zip(axes, (checkerboard, pinwheel, eight_gaussians), strict=True):
        flow, seconds = train(draw, args.steps)
        with torch.no_grad():
            z, log_det = flow(points)
            density = (standard_normal(z) + log_det).exp()
            z, log_det = flow(draw(10_000))
            nats = -(standard_normal(z) + log_det).mean()
            samples, _ = flow.inverse(torch.randn(3000, 2))
        most = max(block.iterated for block in flow.modules() if isinstance(block, Residual))
        integral = density.sum() * (axis[1] - axis[0]) ** 2
        print(f"| {draw.__name__} | {seconds:.0f} | {nats:.3f} | {integral:.3f} | {most} |", flush=True)
        for place, title, values in zip(row, ("data", "density", "samples"), (draw(3000), None, samples), strict=True):
            if values is None:
                place.imshow(density.view(160, 160).T, origin="lower", extent=(-REACH, REACH, -REACH, REACH))
            else:
                place.scatter(*values.T, s=1, color="C0")
            place.set(title=f"{draw.__name__}: {title}", xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
            place.set(xticks=[], yticks=[])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=80)
    print(f"seed 0, {args.steps} steps of 256 points, {args.threads} thread(s): {args.output}")


if __name__ == "__main__":
    main()
