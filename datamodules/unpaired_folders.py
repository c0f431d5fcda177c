"""Two folders of images of any kind, which are not pairs."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.base import Split
from datamodules.files import DataError
from datamodules.folders import Listing, used_splits
from datamodules.image_cache import cached, open_image
from datamodules.loader import TensorLoader
from datamodules.paired_folder import scaled, sides_of
from datamodules.two_sided import TwoSided
from lit_generative.images import from_uint8
from lit_generative.utils.rng import mixed_seed


class UnpairedLoader:
    """Batches ``(x, c)`` of two loaders, as many as the longer one has.

    The shorter one begins anew whenever it ends, in the order of its next epoch, also from one epoch of the longer to
    the next: so all its images come equally often. What it gives is a function of the longer one's position.
    """

    batch_sampler = None  # Lightning reads it of any loader with a sampler

    def __init__(self, targets: TensorLoader, sources: TensorLoader) -> None:
        self.loaders = targets, sources
        self.longer = max(self.loaders, key=len)
        self.shorter = sources if self.longer is targets else targets
        self.count = min(loader.count for loader in self.loaders)

    @property
    def sampler(self) -> TensorLoader:
        """What Lightning tells the epoch."""
        return self.longer

    def state_dict(self) -> dict[str, int]:
        return self.longer.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.longer.load_state_dict(state)

    def __len__(self) -> int:
        return len(self.longer)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        others: Iterator[tuple[Tensor, Tensor]] = iter(())
        for first, _ in self.longer:
            number = self.longer.epoch * len(self.longer) + self.longer.position - 1
            if (second := next(others, None)) is None:
                others = self._shorter_from(number)
                second = next(others)
            yield (first, second[0]) if self.longer is self.loaders[0] else (second[0], first)

    def _shorter_from(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The rest of an epoch of the shorter loader from its batch ``number``, counted over all epochs."""
        epoch, position = divmod(number, len(self.shorter))
        self.shorter.load_state_dict(self.shorter.state_dict() | {"epoch": epoch, "position": position})
        return iter(self.shorter)


class UnpairedFolders(TwoSided):
    """Two folders of images, a and b, of any size and number.

    ``data_dir`` is laid out as for `PairedFolder`, but that names and numbers are free, and that there are no images of
    both sides: ``trainA``, ``trainB``, ``testA`` and ``testB``; ``train`` and ``test`` with folders ``A`` and ``B``, or
    the reverse; or ``A`` and ``B`` alone. Without a split for testing, a tenth of either side is held out for it. An
    epoch is one of the side with more images. In validation and test the first target stands beside the first source,
    and so on; the side with fewer images begins anew.

    Args:
        images: Arguments of `TwoSided`.

    Raises:
        DataError: A side is missing or has too few images, or images cannot be read.
    """

    cache_name = "unpaired"
    paired = False

    def __init__(self, data_dir: str | None = None, **images: Any) -> None:
        super().__init__(data_dir, **images)
        self._sources: dict[str, tuple[Tensor, Tensor]] = {}  # as `_sets`, which has the targets

    # ---- files

    def prepare_data(self) -> None:
        """Decode the images into the cache files, unless these are up to date (Lightning: in one process per node)."""
        for split in ("train", "val", "test"):
            for side in "ab":
                self._open(split, side)

    @cached_property
    def _found(self) -> dict[str, dict[str, list[Path]]]:
        """The images of every split and side."""
        found = self._listed()
        if found.keys() in ({""}, {"train"}):
            (sides,) = found.values()
            if min(map(len, sides.values())) < 3:
                found_now = " and ".join(f"{len(sides[side])} of side {side}" for side in "ab")
                raise DataError(
                    f"{self.data_dir} must have >= 3 images of each side, for training, validation and test; "
                    f"got {found_now}"
                )
            found = self._drawn(sides, "test", self._tenth)
        found = used_splits(found, self.data_dir)
        if "val" not in found:
            found |= self._drawn(found["train"], "val", self._split)
        counts = (f"{len(own['a']):,} and {len(own['b']):,} for {split}" for split, own in found.items())
        rank_zero_info(f"{self.data_dir}: images of sides a and b, {', '.join(counts)}")
        return found

    def _listed(self) -> dict[str, dict[str, list[Path]]]:
        """The images that are there."""
        listing = Listing(self.data_dir, self.skip_broken)
        found = sides_of(listing)
        both = [own[0].parent for sides in found.values() for side, own in sides.items() if not side]
        if both or not found:
            there = f"images in {both[0]}" if both else listing.describe_rest() or "nothing"
            raise DataError(
                f"{self.data_dir} must have a folder of each side, such as trainA and trainB; it has {there}"
            )
        listing.report()
        return found

    def _tenth(self, count: int) -> tuple[Tensor, Tensor]:
        """The indices of those of ``count`` images that are kept, and of a tenth that is held out."""
        order, held_out = self._permutation(count), max(1, count // 10)
        return order[held_out:], order[:held_out]

    def _drawn(self, sides: dict[str, list[Path]], split: str, draw: Callable[[int], Any]) -> dict[str, Any]:
        """Images to train on, and those that ``draw`` holds out of them for ``split``."""
        parts: dict[str, dict[str, list[Path]]] = {"train": {}, split: {}}
        for side, own in sides.items():
            for name, rows in zip(parts, draw(len(own)), strict=True):
                parts[name][side] = [own[i] for i in rows.tolist()]
        return parts

    def _open(self, split: str, side: str) -> tuple[Tensor, Tensor]:
        """The images of a side, uint8 ``(N, 3, size, size)``, memory-mapped, and the indices of those to be used."""
        size = self.load_size if split == "train" else self.image_size
        files, shape = [(path,) for path in self._found.get(split, {}).get(side, [])], (3, size, size)
        if not files:
            return torch.zeros(0, *shape, dtype=torch.uint8), torch.arange(0)
        recipe = f"{type(self).__name__}, {split} {side}, seed {self.seed}"
        images, readable = cached(
            files, shape, lambda own: scaled(open_image(own[0]), size, labels=False), recipe, self.cache,
            self.skip_broken,
        )  # fmt: skip
        return images, readable.nonzero()[:, 0]

    # ---- splits

    def setup(self, stage: str | None = None) -> None:
        """Map the splits that the stage needs into memory."""
        for name in self._needed(stage):
            if name not in self._sets:
                for sets, side in zip((self._sets, self._sources), self._sides, strict=True):
                    images, rows = self._open(name, side)
                    sets[name] = images, rows

    @property
    def _sides(self) -> str:
        """The side of the targets, and that of the sources."""
        return "ba" if self.direction == "a_to_b" else "ab"

    def stored(self, split: Split) -> tuple[Tensor, Tensor]:
        """The targets of a split, copied into memory, and their indices."""
        images, rows = self._open(split, self._sides[0])
        return images[rows], torch.arange(len(rows))

    def sizes(self) -> dict[str, int]:
        """The images of a side in each split that is set up, of the side with more."""
        return {name: max(len(self._sets[name][1]), len(self._sources[name][1])) for name in self._sets}

    # ---- loaders

    def _loader(self, name: str) -> UnpairedLoader:
        sides = [self._sets[name], self._sources[name]]
        if name != "train" and all(len(rows) for _, rows in sides):
            most = max(len(rows) for _, rows in sides)
            sides = [(images, rows[torch.arange(most) % len(rows)]) for images, rows in sides]
        seeds = self.seed, mixed_seed(self.seed, 1)  # else equal numbers of training images would form fixed pairs
        loaders = [
            self._loader_of(name, images, torch.arange(len(images)), rows, seed)
            for (images, rows), seed in zip(sides, seeds, strict=True)
        ]
        return UnpairedLoader(*loaders)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Turn the levels of targets and sources into floats after the transfer."""
        return from_uint8(batch[0]), from_uint8(batch[1])

    def describe_test(self) -> str:
        targets, sources = (len(sets["test"][1]) for sets in (self._sets, self._sources))
        size = self.image_size
        return (
            f"{targets:,} targets and {sources:,} sources of {self.name}, not pairs, the fewer repeated, "
            f"{size}x{size}, {self.hparams['direction']}, RGB"
        )
