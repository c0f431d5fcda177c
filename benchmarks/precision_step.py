"""A training step in float32, in bfloat16 and compiled: what `--trainer.precision bf16-mixed` and `--compile` bring.

    python benchmarks/precision_step.py [--threads 1] [--rounds 5] [--models VAE IWAE ...]

Forward, backward and fused Adam in a bare loop, in turns; compiling is timed by itself and kept on disk, so that only
the first run of this script shows its full cost.
"""

import argparse
import copy
import statistics
import time
from contextlib import nullcontext

import torch

from lit_generative.models import DDPM, IWAE, VAE, RealNVP

# a model, its batch, and whether its pixels are binary
SYSTEMS = {
    "VAE": (lambda: VAE(hidden=(500, 500), latent=20, likelihood="bernoulli"), 128, True),
    "IWAE": (lambda: IWAE(k=50), 128, True),
    "VAE_conv": (lambda: VAE(network="conv", hidden=(64, 128), latent=20), 128, False),
    "RealNVP": (lambda: RealNVP(norm="act"), 64, False),
    "DDPM": (DDPM, 64, False),
}
MODES = {"float32": (False, False), "bf16": (True, False), "compiled": (False, True), "bf16, compiled": (True, True)}


def loss_of(model, compiled):
    """The training loss as a function of images, and it compiled as `Compiles.compile` does."""
    (name,) = model.compiled_functions
    function = getattr(model, name)
    if compiled:
        function = torch.compile(function, options={"fallback_random": True})
    if isinstance(model, DDPM):
        return lambda x: function(x, torch.randint(1, 1001, (len(x),))).mean()
    if isinstance(model, RealNVP):
        return lambda x: -function(x).mean()
    return lambda x: function(x)["loss"].mean()


def stepper(model, half, compiled, x):
    loss, optimizer = loss_of(model, compiled), torch.optim.Adam(model.parameters(), 1e-5, fused=True)

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            value = loss(x)
        value.backward()
        optimizer.step()

    return step


def seconds(step, repeats=1):
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"ms a step, {args.threads} thread(s), {args.rounds} rounds in turns, medians; torch {torch.__version__}")
    print(f"| | {' | '.join(MODES)} | compiling, s |\n|---|{'---:|' * (len(MODES) + 1)}")
    for name in args.models:
        make, batch, binary = SYSTEMS[name]
        torch.manual_seed(0)
        x = torch.randint(0, 256, (batch, 1, 28, 28)) / 255
        x = (x > 0.87).float() if binary else x
        model = make()
        stepper(model, False, False, x)()  # what the first batch sets
        steps = {mode: stepper(copy.deepcopy(model), *options, x) for mode, options in MODES.items()}
        first = {mode: seconds(step) for mode, step in steps.items()}
        repeats = max(1, int(0.5 / seconds(steps["float32"])))
        rounds = [{mode: seconds(step, repeats) for mode, step in steps.items()} for _ in range(args.rounds)]
        cells = [f"{statistics.median(r['float32'] for r in rounds) * 1000:.1f}"]
        for mode in list(MODES)[1:]:
            cells.append(f"{statistics.median(r['float32'] / r[mode] for r in rounds):.2f}x")
        print(f"| {name} | {' | '.join(cells)} | {max(first.values()):.0f} |", flush=True)


if __name__ == "__main__":
    main()
