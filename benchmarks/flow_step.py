"""Training and sampling of one stack of couplings against normflows, nflows and zuko.

    pip install normflows nflows zuko; python benchmarks/flow_step.py [--threads 2] [--rounds 7] [--steps 10]

Eight affine couplings of 784 numbers, conditioners 392-256-256-784 with ReLU, batches of 128, maximum likelihood, fused
Adam for all; each library in the way that its documentation shows. The last row is ours as RealNVP has it with
`--trainer.precision bf16-mixed --compile`; the others have no such switch. Libraries that are not installed are left
out.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from lit_generative.flows.bijections import Chain
from lit_generative.flows.coupling import dense
from lit_generative.likelihoods import standard_normal
from lit_generative.training.compilation import Compiles

DIMS, COUPLINGS, HIDDEN, BATCH = 784, 8, 256, 128


def ours():
    flow = Chain(*dense(DIMS, COUPLINGS, HIDDEN, 2, "none", alternate=True))

    def nll(x):
        z, log_det = flow(x)
        return -(standard_normal(z) + log_det).mean()

    return flow, nll, lambda n: flow.inverse(torch.randn(n, DIMS))[0]


def ours_bf16_compiled():
    flow, nll, sample = ours()
    compiled = torch.compile(nll, options=Compiles.compile_options())

    def fast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(x)

    return flow, fast, sample


def normflows():
    import normflows as nf

    layers = []
    for _ in range(COUPLINGS):
        net = nf.nets.MLP([DIMS // 2, HIDDEN, HIDDEN, DIMS], init_zeros=True)
        layers += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(DIMS, mode="swap")]
    flow = nf.NormalizingFlow(nf.distributions.base.DiagGaussian(DIMS, trainable=False), layers)
    return flow, flow.forward_kld, lambda n: flow.sample(n)[0]


def nflows():
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import AffineCouplingTransform, CompositeTransform
    from nflows.utils import create_alternating_binary_mask

    class Net(nn.Sequential):
        def __init__(self, i, o):
            super().__init__(
                nn.Linear(i, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, o)
            )

        def forward(self, x, context=None):
            return super().forward(x)

    masks = [create_alternating_binary_mask(DIMS, even=i % 2 == 0) for i in range(COUPLINGS)]
    layers = [AffineCouplingTransform(mask, lambda i, o: Net(i, o)) for mask in masks]
    flow = Flow(CompositeTransform(layers), StandardNormal([DIMS]))
    return flow, lambda x: -flow.log_prob(x).mean(), flow.sample


def zuko():
    import zuko

    flow = zuko.flows.RealNVP(DIMS, transforms=COUPLINGS, hidden_features=(HIDDEN, HIDDEN))
    return flow, lambda x: -flow().log_prob(x).mean(), lambda n: flow().sample((n,))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x = torch.randn(BATCH, DIMS)
    systems = {}
    for make in (ours, normflows, nflows, zuko, ours_bf16_compiled):
        torch.manual_seed(0)
        try:
            flow, nll, sample = make()
        except ImportError as error:
            print(f"without {make.__name__}: {error}")
            continue
        optimizer = torch.optim.Adam(flow.parameters(), 1e-4, fused=True)
        systems[make.__name__] = flow, nll, sample, optimizer

    def train(flow, nll, sample, optimizer):
        loss = nll(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def draw(flow, nll, sample, optimizer):
        sample(BATCH)

    def seconds(act, system, steps):
        start = time.perf_counter()
        for _ in range(steps):
            act(*system)
        return (time.perf_counter() - start) / steps

    times = {name: ([], []) for name in systems}
    for system in systems.values():
        for act in (train, draw):
            seconds(act, system, 3)
    for _ in range(args.rounds):
        for name, system in systems.items():
            for act, found in zip((train, draw), times[name], strict=True):
                found.append(seconds(act, system, args.steps))
    print(f"{args.threads} threads, {args.rounds} rounds in turns of {args.steps} steps, batches of {BATCH}; medians")
    print(
        "| | parameters | ms a step | images/s | ours is | at its best | ms a batch of samples | samples/s | ours is |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, (step, batch) in times.items():
        parameters = sum(p.numel() for p in systems[name][0].parameters())
        cells = []
        best = times["ours_bf16_compiled"][0]
        for found, references in zip((step, batch), ((times["ours"][0], best), (times["ours"][1],)), strict=True):
            median = statistics.median(found)
            cells += [f"{median * 1e3:.1f}", f"{BATCH / median:,.0f}"]
            for mine in references:
                cells.append(f"{statistics.median(a / b for a, b in zip(found, mine, strict=True)):.2f}x")
        print(f"| {name} | {parameters:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
