"""What a step costs beside its computation when processes train together, and what an added process brings.

    python benchmarks/processes.py [--processes 2] [--rounds 5] [--steps 40] [--threads 1]

For every model, one and then ``--processes`` processes of ``torchrun``, each with batches of its own: the step under
the Trainer with DDP as ``train.py`` sets it up (loader, exchange of gradients, curves), against forward, backward and
optimiser alone, in the same processes without an exchange. The difference is the time outside compute.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from overhead import Clock, Data

from callbacks import SaveOnSignal
from datamodules.loader import TensorLoader
from lit_generative.families.adversarial import frozen
from lit_generative.models.dcgan import DCGAN
from lit_generative.models.ddpm import DDPM
from lit_generative.models.realnvp import RealNVP
from lit_generative.models.vae import VAE
from lit_generative.training.run_logger import RunLogger

WARMUP = 5
MODELS = {  # and the images of a batch
    "VAE 784-500-500-20": (lambda: VAE(likelihood="logistic", hidden=(500, 500), latent=20), 128),
    "VAE conv 64-128": (lambda: VAE(network="conv", likelihood="logistic", hidden=(64, 128), latent=32), 128),
    "RealNVP dense 8 x 1024": (lambda: RealNVP(stack="fully_connected", width=1024, norm="none"), 128),
    "DCGAN 64": (DCGAN, 64),
    "DDPM 32-96": (DDPM, 64),
}


def loader(batch, rank, world):
    images = torch.randint(256, (1024, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    rows = torch.arange((2 * WARMUP + 200) * batch * world) % len(images)
    labels = torch.zeros(len(images), dtype=torch.long)
    ranks = {"rank": rank, "world_size": world}
    return TensorLoader(images, labels, batch, shuffle=True, drop_last=True, seed=0, rows=rows, **ranks)


def turn(model, optimizers, batch):
    """Forward, backward and optimiser; of both networks in a game."""
    if model.automatic_optimization:
        turns = [(optimizers[0], nullcontext(), lambda: model.training_step(batch, 0))]
    else:
        fake = model.generate(batch)
        turns = [
            (
                optimizers[1],
                nullcontext(),
                lambda: model.discriminator_loss(batch, fake.detach())["loss_discriminator"],
            ),
            (optimizers[0], frozen(model.discriminator), lambda: model.generator_loss(batch, fake)["loss_generator"]),
        ]
    for optimizer, context, loss in turns:
        optimizer.zero_grad()
        with context:
            loss().backward()
        optimizer.step()


def compute(build, batch, steps):
    model = build().train()
    optimizers = model.default_optimizers()
    x, c = torch.rand(batch, 1, 28, 28), torch.zeros(batch, dtype=torch.long)
    for _ in range(WARMUP):
        turn(model, optimizers, (x, c))
    torch.distributed.barrier()
    start = time.perf_counter()
    for _ in range(steps):
        turn(model, optimizers, (x, c))
    return (time.perf_counter() - start) / steps * 1000


def together(build, batch, steps, rank, world, folder):
    clock = Clock(steps, WARMUP)
    torch.manual_seed(0)
    model = build()
    strategy = "ddp" if model.automatic_optimization else "ddp_find_unused_parameters_true"
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategy,
        use_distributed_sampler=False,
        callbacks=[clock, SaveOnSignal()],
        logger=RunLogger(folder, "run"),
        max_steps=WARMUP + steps + 1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, Data(loader(batch, rank, world)))
    return clock.milliseconds


def measure(name, steps, threads):
    """In one of the processes that torchrun has started."""
    torch.set_num_threads(threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    build, batch = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        step = together(build, batch, steps, rank, world, folder)
        bare = compute(build, batch, steps)
    if rank == 0:
        print("measured: " + json.dumps([bare, step]), flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def launch(processes, name, arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", __file__,
               "--measure", name, f"--steps={arguments.steps}", f"--threads={arguments.threads}"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=Path.cwd())
    lines = [line for line in done.stdout.splitlines() if line.startswith("measured: ")]
    if done.returncode or not lines:
        sys.exit(done.stderr[-2000:])
    return json.loads(lines[0].removeprefix("measured: "))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="launches of each, in turns")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of a launch, at most 200")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.steps, arguments.threads)
        return
    print("| | processes | compute, ms | step, ms | outside compute | images/s | of one alone |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, (_, batch) in MODELS.items():
        counts = dict.fromkeys((1, arguments.processes))
        rounds = [{n: launch(n, name, arguments) for n in counts} for _ in range(arguments.rounds)]
        for n in counts:
            bare, step = (statistics.median(found[n][i] for found in rounds) for i in (0, 1))
            share = statistics.median(found[1][1] / found[n][1] for found in rounds)
            print(f"| {name}, {batch} | {n} | {bare:.1f} | {step:.1f} | {1 - bare / step:.0%} | "
                  f"{1000 * n * batch / step:,.0f} | {share:.0%} |", flush=True)  # fmt: skip
    print(
        f"\nprotocol: float32, CPU, {os.cpu_count()} cores, {arguments.threads} thread(s) a process, gloo, torch "
        f"{torch.__version__}; medians of {arguments.rounds} rounds in turns, {arguments.steps} steps after {WARMUP}"
    )


if __name__ == "__main__":
    main()
