"""Batches of images that fit in memory, at the speed of memory.

A ``DataLoader`` fetches image by image, through PIL and Python; for small images that takes longer than
the training step. Here the whole set is one uint8 tensor and a batch is one ``index_select``.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from lit_generative.errors import UserError

CHUNK = 512  # images drawn at a time by `bernoulli`: the random numbers stay in the processor's cache

SEEDS = {"train": 1, "val": 2, "test": 3}


def fixed_generator(split: str) -> Generator:
    """For what is drawn once (binarisation, mutation): seeded whatever the run's own, so that runs are comparable."""
    return Generator().manual_seed(SEEDS[split])


def bernoulli(images: Tensor, generator: Generator) -> Tensor:
    """Draw each pixel of level k as 255 with probability exactly k/255, else 0; uint8 of any shape."""
    binary = torch.empty_like(images)
    for source, target in zip(images.split(CHUNK), binary.split(CHUNK), strict=True):
        # u is uniform on the 255 values 0..254, k of which are below k: none for level 0, all for 255
        u = torch.randint(0, 255, source.shape, dtype=torch.uint8, generator=generator)
        target.copy_(u < source).mul_(255)
    return binary


def mutate(images: Tensor, generator: Generator, fraction: float) -> Tensor:
    """Replace each value with probability ``fraction`` by one of the 256 levels, uniformly; uint8 of any shape."""
    mutated = images.clone()
    for target in mutated.split(CHUNK):
        levels = torch.randint(0, 256, target.shape, dtype=torch.uint8, generator=generator)
        chosen = torch.rand(target.shape, generator=generator) < fraction
        target.copy_(torch.where(chosen, levels, target))
    return mutated


def cut(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """A square of each image ``(N, C, H, W)`` from its upper left corner (y, x) on, ``(N, 2)``."""
    squares = zip(images, corners.tolist(), strict=True)
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in squares])


class TensorLoader:
    """Iterate over images and labels in memory, in an order that is a function of (seed, epoch) only.

    Args:
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
        batch_size: images per batch and process.
        shuffle: draw a new permutation every epoch.
        drop_last: only whole batches (training). The ranks then share global batches of
            ``batch_size * world_size`` images: together they see exactly what one process with that
            batch size sees. Without it (evaluation) every image is seen exactly once over all ranks.
        seed: non-negative.
        rank: this process among the ``world_size`` that share the set.
        random_flip: mirror each image with probability 1/2, drawn anew every epoch.
        mutation: replace this fraction of pixels every epoch, see `mutate`.
        binarize: draw each pixel anew every epoch (dynamic binarisation), see `bernoulli`.
        rows: indices of the images that make up the set, where ``images`` holds more.
        crop: cut a random square of this side out of each image, drawn anew every epoch.

    Yields ``(x, c)``: x uint8 ``(B, C, H, W)``, c int64 ``(B,)``.

    Memory: ``mutation`` and ``binarize`` draw all of them anew as an epoch starts, into one more copy (two while
    Lightning still holds the last epoch's iterator). Every rank draws the whole set, so that the draw of
    an image depends neither on the rank nor on the batch size.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        random_flip: bool = False,
        mutation: float = 0.0,
        binarize: bool = False,
        rows: Tensor | None = None,
        crop: int | None = None,
    ) -> None:
        if rows is not None and (mutation or binarize):
            raise UserError("rows cannot be chosen among images that are drawn anew every epoch")
        if len(images) != len(labels) or batch_size < 1 or not 0 <= rank < world_size:
            sizes = f"{len(images)} images, {len(labels)} labels, batch_size {batch_size}"
            raise UserError(f"these do not fit: {sizes}, rank {rank} of {world_size}")
        self.images, self.labels = images, labels
        self.rows, self.crop = rows, crop
        self.count = len(images) if rows is None else len(rows)
        self.batch_size = batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.rank, self.world_size = rank, world_size
        self.random_flip, self.mutation, self.binarize = random_flip, mutation, binarize
        self.epoch = 0
        self.position = 0  # batches yielded in this epoch
        self._start = 0  # where the next iteration begins: 0, unless a state was loaded
        self._step: int | None = None  # images of its steps

    batch_sampler = None  # Lightning asks for it wherever there is a sampler

    @property
    def sampler(self) -> "TensorLoader":
        """The loader itself: Lightning calls ``loader.sampler.set_epoch(epoch)`` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the one that a loaded state is in goes on from its position."""
        if epoch != self.epoch:
            self.epoch, self.position, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: the epoch, the batches yielded in it, and the images of a step over all ranks."""
        return {"epoch": self.epoch, "position": self.position, "step": self.batch_size * self.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that the saved loader had yielded; after the last, from the start.

        Iterating then raises a ValueError if that is within the epoch and steps have more or fewer images now.
        """
        step = state.get("step", self.batch_size * self.world_size)
        left = self.count - state["position"] * step
        within = left >= (step if self.drop_last else 1)
        self.epoch, self.position = state["epoch"], state["position"]
        self._start, self._step = (self.position, step) if within else (0, None)

    def __len__(self) -> int:
        if self.drop_last:
            return self.count // (self.batch_size * self.world_size)
        return math.ceil(len(range(self.rank, self.count, self.world_size)) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator, so that nothing happens before the first next(): Lightning calls iter() more than
        # once, and before it chooses the epoch.
        start, self._start = self._start, 0
        now = self.batch_size * self.world_size
        if start and self._step != now:
            raise UserError(
                f"the checkpoint lies within an epoch with {self._step} images a step, and here are {now}: keep "
                "--data.batch_size times the number of processes, or take a checkpoint from the end of an epoch"
            )
        generator = self._generator()
        batches = self._order(generator).split(self.batch_size)
        images = mutate(self.images, generator, self.mutation) if self.mutation else self.images
        images = bernoulli(images, generator) if self.binarize else images
        side = self.crop or images.shape[-1]
        room = images.shape[-1] - side
        corners = torch.randint(0, room + 1, (self.count, 2), generator=generator) if room else None
        flat = images.flatten(1)  # index_select copies rows of a matrix fastest
        shape = (-1, *images.shape[1:])
        for position in range(start, len(self)):
            self.position = position + 1  # before the yield: nobody asks for more after the last batch
            mirrored, index = batches[position] >= self.count, batches[position] % self.count
            chosen = index if self.rows is None else self.rows[index]
            x = flat.index_select(0, chosen).view(shape)
            if corners is not None:
                x = cut(x, corners[index], side)
            if self.random_flip:
                both = torch.cat([x, x.flip(-1)])
                x = both.flatten(1).index_select(0, torch.arange(len(x)) + len(x) * mirrored).view_as(x)
            yield x, self.labels.index_select(0, chosen)

    def _generator(self) -> Generator:
        # torch's generator keeps only 32 bits of its seed; SeedSequence mixes both numbers into them
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
        return Generator().manual_seed(int(mixed[0]))

    def _order(self, generator: Generator) -> Tensor:
        """The numbers of the images that this rank fetches in this epoch, in order; plus ``count`` if mirrored."""
        order = torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)
        if self.random_flip:
            order += self.count * torch.randint(0, 2, order.shape, generator=generator)
        if not self.drop_last:
            return order[self.rank :: self.world_size]
        global_batches = order[: len(self) * self.batch_size * self.world_size]
        return global_batches.view(len(self), self.world_size, self.batch_size)[:, self.rank].flatten()
