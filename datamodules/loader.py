"""Fast batches of images in memory.

A ``DataLoader`` fetches image by image, through PIL and Python, which takes longer than the training step
if images are small. Here the whole set is one uint8 tensor and a batch is one ``index_select``.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from lit_generative.errors import UserError

CHUNK = 512  # images for which random numbers are drawn at a time, so that these stay in the processor's cache

SEEDS = {"train": 1, "val": 2, "test": 3}


def fixed_generator(split: str) -> Generator:
    """A generator for what is drawn once (binarisation, mutation), the same in all runs: scores stay comparable."""
    return Generator().manual_seed(SEEDS[split])


def bernoulli(images: Tensor, generator: Generator) -> Tensor:
    """Draw each pixel of level k as 255 with probability exactly k/255, else 0; uint8 of any shape."""
    binary = torch.empty_like(images)
    for source, target in zip(images.split(CHUNK), binary.split(CHUNK), strict=True):
        # u is uniform on the 255 values 0..254, of which k are below k: none for level 0, all for level 255
        u = torch.randint(0, 255, source.shape, dtype=torch.uint8, generator=generator)
        target.copy_(u < source).mul_(255)
    return binary


def mutate(images: Tensor, generator: Generator, fraction: float) -> Tensor:
    """Replace each value with probability ``fraction`` by a uniformly random level; uint8 of any shape."""
    mutated = images.clone()
    for target in mutated.split(CHUNK):
        levels = torch.randint(0, 256, target.shape, dtype=torch.uint8, generator=generator)
        chosen = torch.rand(target.shape, generator=generator) < fraction
        target.copy_(torch.where(chosen, levels, target))
    return mutated


def cut(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Crop a square out of each image ``(N, C, H, W)``, given its upper left corner (y, x), ``(N, 2)``."""
    squares = zip(images, corners.tolist(), strict=True)
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in squares])


class TensorLoader:
    """Iterate over images and labels in memory, in an order that is a function of (seed, epoch) only.

    Args:
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
        batch_size: Images per batch and process.
        shuffle: Draw a new permutation every epoch.
        drop_last: Yield whole batches only (training). The ranks then share global batches of
            ``batch_size * world_size`` images: together they see exactly what one process with that
            batch size sees. Without it (evaluation), the ranks together see every image exactly once.
        seed: Non-negative.
        rank: The rank of this process among the ``world_size`` that share the set.
        random_flip: Mirror each image with probability 1/2, drawn anew every epoch.
        mutation: Fraction of pixels to replace, drawn anew every epoch, see `mutate`.
        binarize: Binarise each pixel, drawn anew every epoch (dynamic binarisation), see `bernoulli`.
        rows: Indices of the images in use, if not all.
        crop: Side of a square to crop at random out of each image, drawn anew every epoch.

    Yields ``(x, c)``: x uint8 ``(B, C, H, W)``, c int64 ``(B,)``.

    Memory: at the start of an epoch, ``mutation`` and ``binarize`` make a copy of the images (two exist while
    Lightning still holds the previous epoch's iterator). Every rank draws for the whole set, so that the
    result for an image depends neither on the rank nor on the batch size.
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
            raise UserError("rows must be None with mutation or binarize, which copy all images every epoch")
        if len(images) != len(labels) or batch_size < 1 or not 0 <= rank < world_size:
            raise UserError(
                "need one label per image, batch_size >= 1 and 0 <= rank < world_size; "
                f"got {len(images)} images, {len(labels)} labels, batch_size {batch_size}, rank {rank} of {world_size}"
            )
        self.images, self.labels = images, labels
        self.rows, self.crop = rows, crop
        self.count = len(images) if rows is None else len(rows)
        self.batch_size = batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.rank, self.world_size = rank, world_size
        self.random_flip, self.mutation, self.binarize = random_flip, mutation, binarize
        self.epoch = 0
        self.position = 0  # batches yielded in this epoch
        self._start = 0  # batches that the next iteration skips: 0, unless a state was loaded
        self._step: int | None = None  # images per step over all ranks, of a loaded state

    batch_sampler = None  # Lightning reads it of any loader with a sampler

    @property
    def sampler(self) -> "TensorLoader":
        """The loader itself: Lightning calls ``loader.sampler.set_epoch(epoch)`` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; that of a loaded state continues from its position."""
        if epoch != self.epoch:
            self.epoch, self.position, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """The position: the epoch, the batches yielded in it, and the images per step over all ranks."""
        return {"epoch": self.epoch, "position": self.position, "step": self.batch_size * self.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that the saved loader had yielded, or from the start if it had yielded all.

        If the epoch is unfinished and the number of images per step has changed, iterating raises a `UserError`.
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
        # A generator function: nothing happens before the first next(), as Lightning calls iter() more than once,
        # and before it sets the epoch
        start, self._start = self._start, 0
        now = self.batch_size * self.world_size
        if start and self._step != now:
            raise UserError(
                f"to resume within an epoch, batch_size * processes must be as before, {self._step}, got {now}: change "
                "--data.batch_size or the number of processes, or resume from a checkpoint at the end of an epoch"
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
            self.position = position + 1  # before the yield, since nothing runs after the last one
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
        # torch's generator uses only 32 bits of its seed; SeedSequence mixes both numbers into these
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
        return Generator().manual_seed(int(mixed[0]))

    def _order(self, generator: Generator) -> Tensor:
        """The indices of this rank's images in this epoch, in order; plus ``count`` for those to mirror."""
        order = torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)
        if self.random_flip:
            order += self.count * torch.randint(0, 2, order.shape, generator=generator)
        if not self.drop_last:
            return order[self.rank :: self.world_size]
        global_batches = order[: len(self) * self.batch_size * self.world_size]
        return global_batches.view(len(self), self.world_size, self.batch_size)[:, self.rank].flatten()
