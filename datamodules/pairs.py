"""Pairs of images of the same scene, for image-to-image translation."""

from abc import abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Split
from datamodules.files import DataError
from datamodules.image_cache import Files, cached
from datamodules.two_sided import TwoSided
from lit_generative.images import from_uint8


class PairedImages(TwoSided):
    """Batches ``(x, c)`` of targets and their sources, float32 ``(B, C, H, W)`` and ``(B, C', H, W)`` in [0, 1].

    Both sides of a pair are decoded into one array, so that crops and flips apply to both alike.

    Args:
        images: Arguments of `TwoSided`.
    """

    @property
    def extra_channels(self) -> int:
        """Further channels that are stored with the two sides and that no model sees."""
        return 0

    @abstractmethod
    def find_pairs(self) -> dict[str, list[Files]]:
        """The files of every pair by split: ``train``, ``test`` and optionally ``val``."""

    @abstractmethod
    def read_pair(self, files: Files, size: int) -> np.ndarray:
        """Decode side a, side b and further channels as uint8 ``(channels, size, size)``, or raise a ValueError."""

    # ---- files

    def prepare_data(self) -> None:
        """Decode the pairs into the cache files, unless these are up to date (Lightning: in one process per node)."""
        for split in ("train", "val", "test"):
            self._open(split)

    @cached_property
    def _found(self) -> dict[str, list[Files]]:
        try:
            return self.find_pairs()
        except OSError as error:
            raise DataError(f"{self.data_dir} cannot be read ({error.strerror}): check its permissions") from error

    def _open(self, split: str) -> tuple[Tensor, Tensor]:
        """Pairs, uint8 ``(N, channels, size, size)``, memory-mapped, and the indices of those in the split."""
        size = self.load_size if split == "train" else self.image_size
        shape = (self.channels_a + self.channels_b + self.extra_channels, size, size)
        recipe, found = f"{type(self).__name__}, {self.describe_pair()}, {split}", self._found
        files, rows = found.get(split, []), None
        if split != "test" and "val" not in found:
            train, val = self._split(len(found["train"]))
            if split == "train":
                rows = train  # of a cache file that also holds the validation pairs
            else:
                files, recipe = [found["train"][i] for i in val], f"{recipe}, {len(val)} by seed {self.seed}"
        if not files:
            return torch.zeros(0, *shape, dtype=torch.uint8), torch.arange(0)
        pairs, readable = cached(
            files, shape, lambda paths: self.read_pair(paths, size), recipe, self.cache, self.skip_broken
        )
        rows = torch.arange(len(pairs)) if rows is None else rows
        return pairs, rows[readable[rows]]

    def describe_pair(self) -> str:
        """How `read_pair` decodes a pair, apart from its size, in words; part of the cache's key."""
        return "pairs"

    # ---- splits

    def setup(self, stage: str | None = None) -> None:
        """Map the splits that the stage needs into memory."""
        for name in self._needed(stage):
            if name not in self._sets:
                pairs, self._rows[name] = self._open(name)
                self._sets[name] = pairs, torch.arange(len(pairs))

    def stored(self, split: Split) -> tuple[Tensor, Tensor]:
        """The targets of a split, copied into memory, and their indices."""
        pairs, rows = self._open(split)
        return self._sides(pairs)[0][rows], torch.arange(len(rows))

    def _sides(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Target and source, as stored."""
        a, b, _ = pairs.split([self.channels_a, self.channels_b, self.extra_channels], 1)
        return (b, a) if self.direction == "a_to_b" else (a, b)

    # ---- loaders

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Turn the levels of target and source into floats after the transfer."""
        target, source = self._sides(batch[0])
        return from_uint8(target), from_uint8(source)

    def describe_test(self) -> str:
        size = self.image_size
        return f"test pairs of {self.name}, {size}x{size}, {self.hparams['direction']}, {self.describe_pair()}"
