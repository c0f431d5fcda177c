"""A training step of DDPM and 50 steps of sampling against diffusers and denoising-diffusion-pytorch.

    pip install diffusers denoising-diffusion-pytorch; python benchmarks/ddpm_step.py [--threads 2] [--rounds 3]

28x28 grey images in batches of 64, fused Adam, eps as target, DDIM without noise. Two comparisons: `UNet2DModel` of
diffusers against ours of the same architecture with the same weights (unfolded), and `Unet` of
denoising-diffusion-pytorch (dim 32, multiples 1, 2, 4) against an architecture like that of `ddpm_fashion_mnist` with
as many parameters (folded: squares of pixels become channels first). Training is timed in float32, and with what each
side can switch on: bfloat16 for all (the others' trainers offer it), compiled steps for ours. Libraries that are not
installed are left out.
"""

import argparse
import inspect
import statistics
import time

import torch
from torch.nn import functional as F

from lit_generative.models import DDPM

SHAPE, BATCH, SAMPLES, STEPS = (1, 28, 28), 64, 16, 50


def ours(channels, blocks, patch, attention_at, groups):
    model = DDPM(
        SHAPE, channels, blocks, attention_at, groups=groups, patch=patch, sampler="ddim", sampling_steps=STEPS
    )

    def loss(x):
        return model.losses_at((x + 1) / 2, torch.randint(1, 1001, (len(x),))).mean()

    compiled = torch.compile(model.losses_at, options=model.compile_options())

    def best(x):
        return compiled((x + 1) / 2, torch.randint(1, 1001, (len(x),))).mean()

    return model.denoiser, loss, model.sample, best


def unfolded():
    return ours((32, 64, 128), 2, 1, (2,), 8)


def folded():
    return ours((48, 128), 1, 2, (1,), 8)


def diffusers():
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    net = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_num_groups=8,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    )
    net.load_state_dict(unfolded()[0].state_dict())
    noise, sampler = DDPMScheduler(1000), DDIMScheduler(1000, timestep_spacing="linspace")

    def loss(x):
        eps, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        return F.mse_loss(net(noise.add_noise(x, eps, t), t).sample, eps)

    def sample(n):
        sampler.set_timesteps(STEPS)
        x = torch.randn(n, *SHAPE)
        for t in sampler.timesteps:
            x = sampler.step(net(x, t).sample, t, x).prev_sample
        return x

    return net, loss, sample, loss


def denoising_diffusion_pytorch():
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    net = Unet(dim=32, dim_mults=(1, 2, 4), channels=1)
    model = GaussianDiffusion(net, image_size=28, sampling_timesteps=STEPS, objective="pred_noise")
    inspect.getmodule(GaussianDiffusion).tqdm = lambda steps, **_: steps  # no progress bar

    def loss(x):
        return model((x + 1) / 2)

    return net, loss, lambda n: model.sample(batch_size=n), loss


SYSTEMS = (unfolded, diffusers, folded, denoising_diffusion_pytorch)
PAIRS = (
    ("unfolded", "diffusers"),
    ("folded", "denoising_diffusion_pytorch"),
    ("unfolded", "denoising_diffusion_pytorch"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x = torch.rand(BATCH, *SHAPE) * 2 - 1
    systems = {}
    for make in SYSTEMS:
        torch.manual_seed(0)
        try:
            net, loss, sample, best = make()
        except ImportError as error:
            print(f"without {make.__name__}: {error}")
            continue
        systems[make.__name__] = net, loss, sample, best, torch.optim.Adam(net.parameters(), 1e-5, fused=True)

    def train(net, loss, sample, best, optimizer):
        value = loss(x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    def train_best(net, loss, sample, best, optimizer):
        with torch.autocast("cpu", torch.bfloat16):
            value = best(x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    @torch.no_grad()
    def draw(net, loss, sample, best, optimizer):
        sample(SAMPLES)

    def seconds(act, system):
        start = time.perf_counter()
        act(*system)
        return time.perf_counter() - start

    times = {name: ([], [], []) for name in systems}
    for system in systems.values():
        seconds(train, system), seconds(train_best, system)
    for _ in range(args.rounds):
        for name, system in systems.items():
            times[name][0].append(statistics.median(seconds(train, system) for _ in range(3)))
            times[name][1].append(seconds(draw, system))
            times[name][2].append(statistics.median(seconds(train_best, system) for _ in range(3)))
    print(f"{args.threads} threads, {args.rounds} rounds in turns; medians; {SAMPLES} samples at a time")
    print(
        "| | parameters | s a step | images/s | s at its best | samples/s, 50 steps |\n|---|---:|---:|---:|---:|---:|"
    )
    for name, found in times.items():
        parameters = sum(p.numel() for p in systems[name][0].parameters())
        step, batch, best = map(statistics.median, found)
        cells = f"{step:.3f} | {BATCH / step:,.0f} | {best:.3f} | {SAMPLES / batch:.2f}"
        print(f"| {name} | {parameters:,} | {cells} |")
    for mine, theirs in PAIRS:
        if theirs in times:
            ratios = [
                statistics.median(a / b for a, b in zip(slow, quick, strict=True))
                for slow, quick in zip(times[theirs], times[mine], strict=True)
            ]
            print(
                f"{mine} against {theirs}: {ratios[0]:.2f}x a training step, {ratios[2]:.2f}x at both's best, "
                f"{ratios[1]:.2f}x sampling"
            )


if __name__ == "__main__":
    main()
