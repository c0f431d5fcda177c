"""A training step of pix2pix through our module and Trainer against the authors' networks in a bare loop.

    python benchmarks/pix2pix_step.py [--threads 1] [--rounds 5] [--steps 6] [--size 128] [--width 32] [--batch 4]

The authors' networks are written here as their code nests them; both sides have the same layers, losses and Adams, and
images that lie in memory. Ours is also timed with `--trainer.precision bf16-mixed`, which the authors' code lacks.
"""

import argparse
import statistics
import time

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_generative.models.pix2pix import Pix2Pix


class Block(nn.Module):
    """A level of the authors' U-Net around the levels below it."""

    def __init__(self, outer, width, inner=None, outermost=False, dropout=0.0):
        super().__init__()
        down = nn.Conv2d(outer, width, 4, 2, 1, bias=False)
        if outermost:
            layers = [down, inner, nn.ReLU(), nn.ConvTranspose2d(2 * width, outer, 4, 2, 1), nn.Tanh()]
        elif inner is None:
            up = nn.ConvTranspose2d(width, outer, 4, 2, 1, bias=False)
            layers = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, nn.BatchNorm2d(outer)]
        else:
            up = nn.ConvTranspose2d(2 * width, outer, 4, 2, 1, bias=False)
            layers = [nn.LeakyReLU(0.2), down, nn.BatchNorm2d(width), inner, nn.ReLU(), up, nn.BatchNorm2d(outer)]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.outermost, self.model = outermost, nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class AuthorsGenerator(nn.Module):
    def __init__(self, num_downs, width, dropout=0.5):
        super().__init__()
        channels = [width * min(8, 2**i) for i in range(num_downs)]
        block = None
        for i in reversed(range(1, num_downs)):
            # between the innermost block and the narrower ones, as in their code: num_downs - 5 of them
            dropped = width * 8 == channels[i - 1] and block is not None
            block = Block(channels[i - 1], channels[i], block, dropout=dropout * dropped)
        self.model = Block(3, channels[0], block, outermost=True)

    def forward(self, x):
        return self.model(x)


def authors_discriminator(width):
    layers = [nn.Conv2d(6, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for i, stride in ((1, 2), (2, 2), (4, 1)):
        layers += [nn.Conv2d(i * width, 2 * i * width, 4, stride, 1, bias=False), nn.BatchNorm2d(2 * i * width)]
        layers += [nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))


def bare(batches, num_downs, width):
    """Seconds of the authors' loop: the discriminator first or last makes no difference to its time."""
    generator, discriminator = AuthorsGenerator(num_downs, width), authors_discriminator(width)
    adams = [torch.optim.Adam(n.parameters(), 2e-4, (0.5, 0.999)) for n in (generator, discriminator)]
    optimizer_g, optimizer_d = adams

    def gan_loss(logits, real):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    start = time.perf_counter()
    for x, c in batches:
        x, c = x * 2 - 1, c * 2 - 1
        fake = generator(c)
        optimizer_d.zero_grad()
        real_loss = gan_loss(discriminator(torch.cat([c, x], 1)), 1.0)
        (0.5 * (real_loss + gan_loss(discriminator(torch.cat([c, fake.detach()], 1)), 0.0))).backward()
        optimizer_d.step()
        discriminator.requires_grad_(False)
        optimizer_g.zero_grad()
        (gan_loss(discriminator(torch.cat([c, fake], 1)), 1.0) + 100 * F.l1_loss(fake, x)).backward()
        optimizer_g.step()
        discriminator.requires_grad_(True)
    return time.perf_counter() - start


class Clock(Callback):
    def on_train_start(self, *_):
        self.start = time.perf_counter()

    def on_train_end(self, *_):
        self.seconds = time.perf_counter() - self.start


def through_trainer(batches, num_downs, width, size, precision="32-true"):
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        precision=precision,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        Pix2Pix(image_shape=(3, size, size), num_downs=num_downs, width=width), DataLoader(batches, batch_size=None)
    )
    return clock.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 1), ("rounds", 5), ("steps", 6), ("size", 128), ("width", 32), ("batch", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    num_downs = args.size.bit_length() - 1
    batches = [tuple(torch.rand(2, args.batch, 3, args.size, args.size)) for _ in range(args.steps)]
    times = {"ours": [], "authors' networks, bare": [], "ours, bf16": []}
    bare(batches[:2], num_downs, args.width), through_trainer(batches[:2], num_downs, args.width, args.size)
    for _ in range(args.rounds):
        times["ours"].append(through_trainer(batches, num_downs, args.width, args.size))
        times["authors' networks, bare"].append(bare(batches, num_downs, args.width))
        times["ours, bf16"].append(through_trainer(batches, num_downs, args.width, args.size, "bf16-mixed"))
    images = args.steps * args.batch
    print(f"{args.size}x{args.size}, width {args.width}, batches of {args.batch}, {args.threads} threads; medians")
    for name, seconds in times.items():
        print(f"| {name} | {images / statistics.median(seconds):.2f} images/s |")
    for name in ("ours", "ours, bf16"):
        ratio = statistics.median(a / b for a, b in zip(times[name], times["authors' networks, bare"], strict=True))
        print(f"{name}: {ratio:.2f}x the time of the authors' networks")


if __name__ == "__main__":
    main()
