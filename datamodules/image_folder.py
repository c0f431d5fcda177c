"""A folder of images of any kind."""

from functools import cached_property
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.base import ImageData, Split
from datamodules.files import DataError, listed
from datamodules.folders import Listing, by_folder, find_splits, split_of, used_splits
from datamodules.image_cache import cached, decode
from lit_generative.metrics.reference_statistics import cache_folder

USES = {"train": "training", "val": "validation", "test": "test"}


class ImageFolder(ImageData):
    """The images below a folder: flat, or in one folder per class, with labels in the order of the folders' names.

    Folders ``train``, ``val`` and ``test`` (other common names: `folders.SPLITS`), each laid out in this way, are the
    splits; without one for testing, the validation split is used for it. Missing splits are drawn at random by
    ``seed``, and change when images are added or removed. Images of any size, mode and format that Pillow decodes
    become 8-bit squares in a memory-mapped cache file, so that memory does not grow with the folder; the file is
    written again when an image changes. Whatever else is in the folder is logged.

    Args:
        data_dir: The folder; default $LIT_GENERATIVE_DATA, else ``data``.
        image_size: Height and width; the shorter side is scaled to it and the centre is cropped.
        channels: 3 for RGB, 1 for grey.
        batch_size: Images per batch and process.
        val_size: Images held out for validation; default: a tenth of the training images.
        test_size: Images held out for testing; default: a tenth. Not allowed if there is a folder for testing.
        random_flip: Mirror each training image with probability 1/2.
        skip_broken: Leave out images that cannot be read and log them, instead of raising an error.
        cache_dir: Folder of the cache file; default ``~/.cache/lit-generative``.
        seed: Seed of the splits and of the training order.

    Raises:
        DataError: There are no images, some cannot be read, the splits have different classes, or only some folders
            look like splits.
    """

    shape = (3, 64, 64)
    val_fraction = 0.1
    among_others = False
    stored_depends_on = ("image_size", "channels", "test_size", "seed")

    def __init__(
        self,
        data_dir: str | None = None,
        image_size: int = 64,
        channels: int = 3,
        batch_size: int = 128,
        val_size: int | None = None,
        test_size: int | None = None,
        random_flip: bool = False,
        skip_broken: bool = False,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        if channels not in (1, 3) or (test_size or 0) < 0:
            raise DataError(f"ImageFolder: channels must be 1 or 3, test_size >= 0; got {channels}, {test_size}")
        self.shape = (channels, image_size, image_size)
        super().__init__(data_dir, batch_size, val_size, resize="resize", random_flip=random_flip, seed=seed)
        self.test_size, self.skip_broken = test_size, skip_broken
        self.cache = Path(cache_dir).expanduser() if cache_dir else cache_folder() / "images"
        self.classes: list[str] = []  # by label; empty in a flat folder

    # ---- files

    def prepare_data(self) -> None:
        """Decode the images into the cache file, unless it is up to date (Lightning: in one process per node)."""
        _ = self._opened  # does it on first access

    @cached_property
    def _opened(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """All images, memory-mapped, their labels, and the indices of each split."""
        found, splits = self._find()
        files = [(path,) for path, _ in found]
        channels, size, _ = self.image_shape
        recipe = f"{channels} channels, shorter side to {size}, middle"
        images, readable = cached(
            files, self.image_shape, lambda own: decode(own[0], size, channels), recipe, self.cache, self.skip_broken
        )
        labels = torch.tensor([label for _, label in found])
        return images, labels, {split: rows[readable[rows]] for split, rows in splits.items()}

    def _find(self) -> tuple[list[tuple[Path, int]], dict[str, Tensor]]:
        """All images with their labels, and the indices of each split."""
        root = self.data_dir
        listing = Listing(root, self.skip_broken)
        tops = by_folder(listing.images, root)
        splits = find_splits(root, [name for name in tops if name])
        if splits:
            listing.require_full(lambda parts: len(parts) == 1 and split_of(parts[0]))
        # This order fixes the indices, and so which images are drawn for each split
        parts: dict[str, Path] = {split: root / splits[split] for split in ("train", "test", "val") if split in splits}
        parts = used_splits(parts, root) or {"train": root}
        listing.leave_out(path for name, own in tops.items() if splits and name not in splits.values() for path in own)
        found: list[tuple[Path, int]] = []
        rows: dict[str, Tensor] = {}
        self.classes, counts = [], []
        for split, folder in parts.items():
            images, classes = self._labelled(tops[folder.name] if splits else listing.images, folder, listing)
            if found and classes != self.classes:
                differing = listed(sorted(set(classes) ^ set(self.classes)))
                raise DataError(f"{parts['train']} and {folder} must have the same classes: only one has {differing}")
            # in random order, so that each batch mixes the classes
            self.classes, rows[split] = classes, len(found) + self._permutation(len(images))
            counts.append(f"{len(images):,} images" + (f" in {folder.name} for {USES[split]}" if splits else ""))
            found += images
        listing.report()
        of = f", of {len(self.classes):,} classes ({listed(self.classes)})" if self.classes else ""
        rank_zero_info(f"{root}: {', '.join(counts)}{of}")
        if "test" in parts and self.test_size is not None:
            raise DataError(f"ImageFolder: the test images are those in {parts['test']}: leave out test_size")
        if "test" not in parts:
            held_out = max(1, len(found) // 10) if self.test_size is None else self.test_size
            self._require_rest("test_size", held_out, len(found))
            rows = {"test": rows["train"][:held_out], "train": rows["train"][held_out:]}
        return found, rows

    @staticmethod
    def _labelled(images: list[Path], folder: Path, listing: Listing) -> tuple[list[tuple[Path, int]], list[str]]:
        """The images below a folder with their labels, and the names of its classes, none if it is flat.

        Raises:
            DataError: There are no images, some are in classes and others are not, or classes contain splits.
        """
        groups = by_folder(images, folder)
        classes = sorted(name for name in groups if name)
        if not groups:
            rest = listing.describe_rest()
            there = f" (it has {rest})" if rest else ""
            raise DataError(f"{folder} has no readable images{there}: set data_dir to another folder")
        if "" in groups and classes:
            raise DataError(
                f"{folder} has both images and folders of images ({classes[0]}, ...): move all images into folders of "
                "classes, or none"
            )
        for below in {path.parent for path in images}:
            name, *deeper = below.relative_to(folder).parts or ("",)
            if within := next(filter(split_of, deeper), None):
                raise DataError(
                    f"{folder / name} would be a class, but has a folder {within} that looks like a split: set "
                    f"data_dir to {folder / name}, or rename {within}"
                )
        labels = {name: label for label, name in enumerate(classes)} or {"": 0}
        return [(path, label) for name, label in labels.items() for path in groups[name]], classes

    # ---- splits

    def setup(self, stage: str | None = None) -> None:
        """Map the images into memory; a split is a set of indices into all of them."""
        if self._sets:
            return
        images, labels, self._rows = self._opened
        if "val" not in self._rows:
            rows = self._rows["train"]
            train, val = self._split(len(rows))
            self._rows = self._rows | {"train": rows[train], "val": rows[val]}
        self._sets = dict.fromkeys(self._rows, (images, labels))

    def stored(self, split: Split) -> tuple[Tensor, Tensor]:
        """A split, copied into memory."""
        images, labels, indices = self._opened
        return images[indices[split]], labels[indices[split]]

    def labels_of(self, split: Split) -> Tensor:
        _, labels, indices = self._opened
        return labels[indices[split]]

    def describe_test(self) -> str:
        size = self.image_shape[-1]
        return f"test images of the folder {self.data_dir.name}, scaled and cut to {size}x{size}, 8-bit"
