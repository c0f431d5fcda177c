"""A turn of the DCGAN's game through our module and Trainer against bare PyTorch loops with the same networks.

    python benchmarks/gan_step.py [--threads 1] [--rounds 5] [--steps 40] [--images 5000]

The first bare loop does what ours does: one pass of the generator a batch, its images shared by both steps. The second
is the style of the public recipes: torch's default memory layout, the generator runs twice a batch, images come one by
one through PIL, a transform and a DataLoader; there images/s of whole epochs are compared, ours also with
`--trainer.precision bf16-mixed`, its fastest setting on a CPU.
"""

import argparse
import statistics
import time

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from datamodules.loader import TensorLoader
from lit_generative.images import from_uint8
from lit_generative.models.dcgan import DCGAN

BATCH = 64


class Data:
    """Made-up 28x28 images; what they show changes no time."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
        self.labels = torch.zeros(count, dtype=torch.long)

    def ours(self):
        return TensorLoader(self.images, self.labels, BATCH, shuffle=True, drop_last=True, seed=0)

    def theirs(self):
        pictures = [to_pil_image(image) for image in self.images]
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])

        class Pictures(Dataset):
            def __len__(self):
                return len(pictures)

            def __getitem__(self, i):
                return transform(pictures[i]), 0

        return DataLoader(Pictures(), BATCH, shuffle=True, drop_last=True)


def bare_turn(model, optimizers, x):
    """One pass of the generator; the discriminator's gradients are not built in the generator's step."""
    optimizer_g, optimizer_d = optimizers
    fake = model.generate((x, None))
    optimizer_d.zero_grad()
    model.discriminator_loss((x, None), fake.detach())["loss_discriminator"].backward()
    optimizer_d.step()
    model.discriminator.requires_grad_(False)
    optimizer_g.zero_grad()
    model.generator_loss((x, None), fake)["loss_generator"].backward()
    optimizer_g.step()
    model.discriminator.requires_grad_(True)


def public_turn(model, optimizers, x):
    """As many repositories have it: new images, and a discriminator whose gradients are built in vain."""
    optimizer_g, optimizer_d = optimizers
    loss = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(len(x)), torch.zeros(len(x))
    optimizer_d.zero_grad()
    fake = model.generator(torch.randn(len(x), model.latent))
    (loss(model.discriminator(x), ones) + loss(model.discriminator(fake.detach()), zeros)).backward()
    optimizer_d.step()
    optimizer_g.zero_grad()
    loss(model.discriminator(model.generator(torch.randn(len(x), model.latent))), ones).backward()
    optimizer_g.step()


class Clock(Callback):
    def on_train_start(self, *_):
        self.start = time.perf_counter()

    def on_train_end(self, *_):
        self.seconds = time.perf_counter() - self.start


def through_trainer(loader, steps, precision="32-true"):
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        precision=precision,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(DCGAN(), loader)
    return clock.seconds


def bare(turn, batches, steps, layout=torch.preserve_format):
    model = DCGAN().to(memory_format=layout)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": True}
    optimizers = [torch.optim.Adam(n.parameters(), **adam) for n in (model.generator, model.discriminator)]
    start = time.perf_counter()
    for x in batches(steps):
        turn(model, optimizers, x)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--images", type=int, default=5000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = Data(args.images)
    epoch = args.images // BATCH
    theirs = data.theirs()

    def from_memory(steps):
        return (from_uint8(x) for (x, _), _ in zip(data.ours(), range(steps), strict=False))

    class Floats:  # what a datamodule does after the transfer
        def __iter__(self):
            return ((from_uint8(x), c) for x, c in data.ours())

        def __len__(self):
            return epoch

    runs = {
        "bare loop, the same turn": lambda: bare(bare_turn, from_memory, args.steps) / args.steps,
        "ours, Trainer": lambda: through_trainer(Floats(), args.steps) / args.steps,
        "public style, PIL": lambda: (
            bare(public_turn, lambda _: (x for x, _ in theirs), epoch, torch.contiguous_format) / epoch
        ),
        "ours, Trainer, an epoch": lambda: through_trainer(Floats(), epoch) / epoch,
        "ours, bf16, an epoch": lambda: through_trainer(Floats(), epoch, "bf16-mixed") / epoch,
    }
    times = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            torch.manual_seed(0)
            times[name].append(run())
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:<28}{1000 * median:8.1f} ms a turn{BATCH / median:10.0f} images/s")

    def ratio(a, b):
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    print(f"ours / bare loop: {ratio('ours, Trainer', 'bare loop, the same turn'):.3f}x the time")
    print(f"ours / public style: {ratio('public style, PIL', 'ours, Trainer, an epoch'):.2f}x the images/s")
    print(f"ours, bf16 / public style: {ratio('public style, PIL', 'ours, bf16, an epoch'):.2f}x the images/s")


if __name__ == "__main__":
    main()
