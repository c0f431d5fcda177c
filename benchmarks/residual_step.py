"""A training step and sampling of residual flows against normflows, dense and convolutional.

    pip install normflows; python benchmarks/residual_step.py [--threads 1] [--rounds 5] [--steps 5]

Eight blocks of 64-256-256-64, and four of 3x3, 1x1 and 3x3 convolutions of 32 channels on images of 1x28x28, batches of
64, the coefficient 0.97, four terms of the series (what a draw needs on average) with Neumann's gradient, fused Adam,
norms renewed after every step: ours to a tolerance, normflows by five iterations, as its example has it.
"""

import argparse
import statistics
import time

import torch

from lit_generative.flows.bijections import Chain
from lit_generative.flows.residual import Residual
from lit_generative.likelihoods import standard_normal
from lit_generative.nn.lipschitz import lipschitz_convs, lipschitz_mlp, renew_norms
from lit_generative.utils.memory import keep_freed_memory

BATCH, DIMS, SHAPE, TERMS = 64, 64, (1, 28, 28), 4


def ours(dense):
    nets = [lipschitz_mlp(DIMS, 256, 2, 0.97) for _ in range(8)] if dense else [
        lipschitz_convs(SHAPE, 32, 0.97) for _ in range(4)
    ]  # fmt: skip
    flow = Chain(*(Residual(net, "truncated", TERMS) for net in nets))

    def nll(x):
        z, log_det = flow(x)
        return -(standard_normal(z.flatten(1)) + log_det).mean()

    return flow, nll, lambda: renew_norms(flow)


def normflows(dense):
    import normflows as nf

    if dense:
        nets = [nf.nets.LipschitzMLP([DIMS, 256, 256, DIMS], lipschitz_const=0.97) for _ in range(8)]
    else:
        nets = [nf.nets.LipschitzCNN([1, 32, 32, 1], [3, 1, 3], lipschitz_const=0.97) for _ in range(4)]
    flow = torch.nn.ModuleList(nf.flows.Residual(net, reduce_memory=True, n_power_series=TERMS) for net in nets)

    def nll(x):
        total = 0
        for block in flow:
            x, log_det = block.inverse(x)  # from data to noise, as `forward_kld` goes
            total = total + log_det
        return -(standard_normal(x.flatten(1)) + total).mean()

    return flow, nll, lambda: nf.utils.update_lipschitz(flow, 5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()

    def seconds(system, x):
        _, nll, renew, optimizer = system
        start = time.perf_counter()
        for _ in range(args.steps):
            optimizer.zero_grad()
            nll(x).backward()
            optimizer.step()
            renew()
        return (time.perf_counter() - start) / args.steps

    print(f"{args.threads} thread(s), {args.rounds} rounds in turns of {args.steps} steps, batches of {BATCH}; medians")
    print("| | parameters, ours / normflows | ours, ms | normflows, ms | ratio |\n|---|---:|---:|---:|---:|")
    for name, dense in (("dense", True), ("convolutional", False)):
        torch.manual_seed(0)
        x = torch.randn(BATCH, DIMS) if dense else torch.randn(BATCH, *SHAPE)
        systems = []
        for make in (ours, normflows):
            flow, nll, renew = make(dense)
            nll(x)  # sizes that are set by the first batch
            systems.append((flow, nll, renew, torch.optim.Adam(flow.parameters(), 1e-4, fused=True)))
        for system in systems:
            seconds(system, x)
        rounds = [[seconds(system, x) for system in systems] for _ in range(args.rounds)]
        mine, theirs = (1000 * statistics.median(times) for times in zip(*rounds, strict=True))
        counts = " / ".join(f"{sum(p.numel() for p in system[0].parameters()):,}" for system in systems)
        ratio = statistics.median(theirs / mine for mine, theirs in rounds)
        print(f"| {name} | {counts} | {mine:.1f} | {theirs:.1f} | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
