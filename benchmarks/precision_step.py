"""Training steps of recipes in float32 and bfloat16, compiled and not: what precision and `--compile` bring.

    python benchmarks/precision_step.py [RECIPE ...] [--device cpu] [--threads 1] [--rounds 5] [--modes MODE ...]

The recipes' models and batch sizes, made-up images, a bare loop with the recipes' optimisers (forward, backward, step;
for a GAN one step of either network), in turns. Compiling is timed by itself and kept on disk, so that only the first
run of this script shows its full cost. On a GPU float32 multiplies in TensorFloat-32, and the highest memory of a step
is shown.
"""

import argparse
import copy
import re
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml
from torch.profiler import ProfilerActivity, profile

import lit_generative.models
from lit_generative.families.adversarial import Adversarial, frozen
from lit_generative.families.diffusion_model import DiffusionModel
from lit_generative.families.flow_model import FlowModel

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = ["vae_mnist", "iwae_mnist", "vae_fashion_mnist", "realnvp_mnist", "realnvp_fashion_mnist",
           "ddpm_fashion_mnist", "dcgan_fashion_mnist_28", "wgan_gp_mnist"]  # fmt: skip
PRODUCTS = re.compile(  # operations on tensors
    r"aten::(mm|addmm|bmm|baddbmm|mkldnn_convolution|mkldnn_linear|convolution_backward|_slow_conv\w+|"
    r"conv_transpose\w+|_scaled_dot_product\w+)$"
)
# whether in bfloat16, and the mode of torch.compile
MODES = {
    "float32": (False, None),
    "bf16": (True, None),
    "compiled": (False, "default"),
    "bf16, compiled": (True, "default"),
    "bf16, reduce-overhead": (True, "reduce-overhead"),
    "bf16, max-autotune": (True, "max-autotune"),
}


def system_of(recipe, device):
    """The model of a recipe and a batch of made-up images."""
    config = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
    model = getattr(lit_generative.models, config["model"]["class_path"])(**config["model"].get("init_args", {}))
    count = config["data"]["init_args"]["batch_size"]
    x = torch.randint(0, 256, (count, *model.image_shape)) / 255
    return model.to(device), (x > 0.87).float().to(device) if model.num_levels == 2 else x.to(device)


def losses_of(model, x):
    """Functions whose values are minimised one after the other, each with its optimizer."""
    optimizers = model.default_optimizers()
    if isinstance(model, Adversarial):
        fakes = []

        def discriminator():
            fakes[:] = [model.generate((x, None))]
            return next(iter(model.discriminator_loss((x, None), fakes[0].detach()).values()))

        return list(zip((discriminator, lambda: next(iter(model.generator_loss((x, None), fakes[0]).values()))),
                        reversed(optimizers), strict=True))  # fmt: skip
    if isinstance(model, DiffusionModel):
        t = model.schedule.quantile(torch.rand(len(x), device=x.device))
        return [(lambda: model.losses_at(x, t).mean(), optimizers[0])]
    if isinstance(model, FlowModel):
        return [(lambda: -model.log_weights(x).mean(), optimizers[0])]
    return [(lambda: model.objective(x)["loss"].mean(), optimizers[0])]


def stepper(model, x, half, mode):
    """One training step as a function."""
    if mode is not None:
        for name in model.compiled_functions:
            vars(model)[name] = torch.compile(getattr(model, name), options=model.compile_options(mode))
    players = losses_of(model, x)

    def step():
        for i, (loss, optimizer) in enumerate(players):
            optimizer.zero_grad()
            with frozen(model.discriminator) if i else nullcontext():
                with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                    value = loss()
                value.backward()
            optimizer.step()

    return step


def times_its_products(step):
    """The time of a step as a multiple of that in its matrix products and convolutions, forward and backward."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            step()
    events = profiled.key_averages()
    products = sum(event.self_cpu_time_total for event in events if PRODUCTS.search(event.key))
    return sum(event.self_cpu_time_total for event in events) / products


def seconds(step, device, repeats=1):
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", nargs="+", default=list(MODES)[:4], choices=MODES, help="besides float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    gpu = args.device.type == "cuda"
    if gpu:
        torch.set_float32_matmul_precision("high")
    where = torch.cuda.get_device_name() if gpu else f"{args.threads} thread(s)"
    modes = [mode for mode in args.modes if mode != "float32"]
    print(f"a step on {where}, {args.rounds} rounds in turns, medians; torch {torch.__version__}")
    last = "memory, GiB" if gpu else "float32 / bf16, as multiples of their products"
    columns = ["float32, ms", *modes, "images/s of the best", "compiling, s", last]
    print(f"| recipe | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for recipe in args.recipes:
        torch.manual_seed(0)
        torch.compiler.reset()
        model, x = system_of(recipe, args.device)
        stepper(model, x, False, None)()  # what the first batch sets
        steps, first, memory = {}, {}, 0.0
        for mode in ("float32", *modes):
            steps[mode] = stepper(copy.deepcopy(model), x, *MODES[mode])
            first[mode] = seconds(steps[mode], args.device)
            seconds(steps[mode], args.device, 3)  # CUDA graphs are recorded after the first
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        repeats = max(1, int(0.5 / seconds(steps["float32"], args.device)))
        rounds = [{m: seconds(step, args.device, repeats) for m, step in steps.items()} for _ in range(args.rounds)]
        if gpu:
            memory = torch.cuda.max_memory_allocated() / 2**30
        cells = [f"{statistics.median(r['float32'] for r in rounds) * 1000:.2f}"]
        cells += [f"{statistics.median(r['float32'] / r[mode] for r in rounds):.2f}x" for mode in modes]
        best = min(statistics.median(r[mode] for r in rounds) for mode in steps)
        cells += [f"{len(x) / best:,.0f}", f"{max(first.values()):.0f}"]
        plain = [steps[mode] for mode in ("float32", "bf16") if mode in steps]
        cells.append(f"{memory:.1f}" if gpu else " / ".join(f"{times_its_products(step):.2f}x" for step in plain))
        print(f"| {recipe} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
