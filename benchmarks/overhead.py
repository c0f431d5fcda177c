"""What a training step costs under the Trainer: milliseconds a step, against a bare PyTorch loop.

The same VAE, loader and fused Adam everywhere. The Trainer is set up as ``train.py`` does it: callbacks, checkpoints,
CSV logger, progress (as lines, into a sink), all metrics of training logged. For comparison, the same model logging
three or twelve values with ``self.log`` in every step. Steps are timed inside one fit, after its first ones and
without validation; the variants take turns.

    python benchmarks/overhead.py [--rounds 9] [--steps 100] [--threads 1]
"""

import argparse
import contextlib
import logging
import os
import statistics
import tempfile
import time
import warnings

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from callbacks import PredictionWriter, Progress, ReconstructionGrid, Report, SampleGrid
from datamodules.loader import TensorLoader
from lit_generative.images import from_uint8
from lit_generative.models.vae import VAE

BATCH, WARMUP = 128, 50


class ThreeLogs(VAE):
    logs = 3

    def training_step(self, batch, batch_idx):
        values = list(self.objective(batch[0]).values())
        for i in range(self.logs):
            self.log(f"train/{i}", values[i % len(values)].mean(), prog_bar=i == 0)
        return values[0].mean()


class TwelveLogs(ThreeLogs):
    logs = 12


class Data(LightningDataModule):
    """The loader is made before the fit, so that it is the bare loop's; floats are made as `ImageData` does."""

    def __init__(self, loader):
        super().__init__()
        self.loader = loader

    def train_dataloader(self):
        return self.loader

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return from_uint8(batch[0]), batch[1]


class Clock(Callback):
    """Time between the starts of the step ``lr_warmup_steps`` and of the one ``steps`` later."""

    def __init__(self, steps, lr_warmup_steps=WARMUP):
        self.steps, self.lr_warmup_steps = steps, lr_warmup_steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.lr_warmup_steps:
            self.start = time.perf_counter()
        elif batch_idx == self.lr_warmup_steps + self.steps:
            self.milliseconds = (time.perf_counter() - self.start) / self.steps * 1000


def build(model_class):
    torch.manual_seed(0)
    return model_class(latent=20, hidden=(500, 500), likelihood="bernoulli")


def under_trainer(model_class, loader, steps, folder):
    clock = Clock(steps)
    best = ModelCheckpoint(monitor="val/loss", filename="best", save_last=True, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=CSVLogger(folder),
        callbacks=[SampleGrid(), ReconstructionGrid(), Progress(), PredictionWriter(), Report(), best, clock],
        max_steps=WARMUP + steps + 1,
        limit_val_batches=0,
        enable_model_summary=False,
    )
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        trainer.fit(build(model_class), Data(loader))
    return clock.milliseconds


def their_objective(model, x):
    """The ELBO as a user would write it without this library."""
    mu, log_var = model.encoder(x).chunk(2, -1)
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)
    reconstruction = F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="sum")
    return (reconstruction - 0.5 * (1 + log_var - mu.square() - log_var.exp()).sum()) / len(x)


def bare(objective, loader, steps):
    model = build(VAE).train()
    optimizer = torch.optim.Adam(model.parameters(), model.lr, fused=True)
    for i, (x, _) in enumerate(loader):
        if i == WARMUP:
            start = time.perf_counter()
        elif i == WARMUP + steps:
            return (time.perf_counter() - start) / steps * 1000
        loss = objective(model, from_uint8(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError("the loader has fewer batches than there are steps")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each variant and round")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    steps = arguments.steps
    count = (WARMUP + steps + 1) * BATCH
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(count, 1, 28, 28, generator=generator) < 0.13).to(torch.uint8).mul_(255)
    labels = torch.zeros(count, dtype=torch.long)

    def loader():
        return TensorLoader(images, labels, BATCH, shuffle=True, drop_last=True, seed=0)

    with tempfile.TemporaryDirectory() as folder:
        variants = {
            "bare loop, this library's objective": lambda: bare(
                lambda m, x: m.objective(x)["loss"].mean(), loader(), steps
            ),
            "bare loop, objective written out": lambda: bare(their_objective, loader(), steps),
            "Trainer, all metrics (accumulate)": lambda: under_trainer(VAE, loader(), steps, folder),
            "Trainer, 3 self.log a step": lambda: under_trainer(ThreeLogs, loader(), steps, folder),
            "Trainer, 12 self.log a step": lambda: under_trainer(TwelveLogs, loader(), steps, folder),
        }
        rounds = [[run() for run in variants.values()] for _ in range(arguments.rounds)]
    print(f"{'VAE 784-500-500-20, batches of 128':38} {'ms/step':>8} {'over bare':>10} {'ratio':>7}")
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    for i, name in enumerate(variants):
        ratio = statistics.median(times[i] / times[0] for times in rounds)
        print(f"{name:38} {medians[i]:8.2f} {medians[i] - medians[0]:+10.2f} {ratio:6.2f}x")
    print(
        f"protocol: float32, CPU, {arguments.threads} thread(s), torch {torch.__version__}; TensorLoader, fused Adam, "
        f"CSV logger every 50 steps, progress as lines; {arguments.rounds} rounds in turns of {steps} steps after "
        f"{WARMUP}; ratio: median over rounds"
    )


if __name__ == "__main__":
    main()
