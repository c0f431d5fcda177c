"""Any folder of images."""

from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Generator, Tensor

from datamodules.base import ImageData, Split
from datamodules.files import DataError, listed
from datamodules.folders import Listing, by_folder, find_splits, split_of, used_splits
from datamodules.image_cache import cached, decode
from lit_generative.metrics.reference_statistics import cache_folder

USES = {"train": "training", "val": "validation", "test": "test"}


class ImageFolder(ImageData):
    """The images below a folder: flat, or one folder per class, whose labels follow the folders' names.

    Where it has folders ``train``, ``val`` and ``test`` (also by other usual names, see `folders.SPLITS`), each laid
    out so, these are the splits; without one for test, that for validation is for test. What is lacking is split off
    by ``seed``, anew when images are added or removed. Images of any size, mode and format that Pillow reads become
    8-bit squares once; those are kept in a file that is mapped into memory, so that memory does not grow with the
    folder, and made anew when an image changes. A line says what else is in the folder.

    Args:
        data_dir: The folder; default $LIT_GENERATIVE_DATA, else ``data``.
        image_size: Height and width: the shorter side is scaled to it, the middle is cut out.
        channels: 3 for RGB, 1 for grey.
        batch_size: Images per batch and process.
        val_size: Images held out for validation; default: a tenth of the training images.
        test_size: Images held out for test; default: a tenth. Not where a folder is for test.
        random_flip: Mirror training images with probability 1/2.
        skip_broken: Leave out what cannot be read, with a line that lists it, instead of an error.
        cache_dir: Where the file is kept; default ``~/.cache/lit-generative``.
        seed: Of the splits and of the order of training.

    Raises:
        DataError: There are no images, or some cannot be read, or the folders do not fit together; or some look like
            splits, but not all.
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
        if channels not in (1, 3) or image_size < 1 or (test_size or 0) < 0:
            raise DataError(
                "ImageFolder: channels must be 1 or 3, image_size >= 1, test_size >= 0; got "
                f"{channels}, {image_size}, {test_size}"
            )
        self.shape = (channels, image_size, image_size)
        super().__init__(data_dir, batch_size, val_size, resize="resize", random_flip=random_flip, seed=seed)
        self.test_size, self.skip_broken = test_size, skip_broken
        self.cache = Path(cache_dir).expanduser() if cache_dir else cache_folder() / "images"
        self.classes: list[str] = []  # by label; empty in a flat folder
        self._opened: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None

    # ---- files

    def prepare_data(self) -> None:
        """Decode the images, unless that was done (Lightning: in one process per node)."""
        self._open()

    def _open(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """All images, mapped, their labels, and the numbers of those in each split; looked for once."""
        if self._opened is not None:
            return self._opened
        found, splits = self._find()
        files = [(path,) for path, _ in found]
        size, channels = self.image_shape[-1], self.image_shape[0]
        recipe = f"{channels} channels, shorter side to {size}, middle"
        images, whole = cached(
            files, self.image_shape, lambda own: decode(own[0], size, channels), recipe, self.cache, self.skip_broken
        )
        good = torch.zeros(len(files), dtype=torch.bool)
        good[whole] = True
        numbers = {split: rows[good[rows]] for split, rows in splits.items()}
        self._opened = images, torch.tensor([label for _, label in found]), numbers
        return self._opened

    def _find(self) -> tuple[list[tuple[Path, int]], dict[str, Tensor]]:
        """The images with their labels, and the numbers of those in each split."""
        root = self.data_dir
        listing = Listing(root, self.skip_broken)
        tops = by_folder(listing.images, root)
        splits = find_splits(root, [name for name in tops if name])
        if splits:
            listing.require_full(lambda parts: len(parts) == 1 and split_of(parts[0]))
        # in this order the splits of older runs were drawn
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
                raise DataError(
                    f"{parts['train']} and {folder} have different classes: {differing} in one of them only"
                )
            # in a random order: a batch shows all classes
            order = torch.randperm(len(images), generator=Generator().manual_seed(self.seed))
            self.classes, rows[split] = classes, len(found) + order
            counts.append(f"{len(images):,} images" + (f" in {folder.name} for {USES[split]}" if splits else ""))
            found += images
        listing.tell()
        of = f", of {len(self.classes):,} classes ({listed(self.classes)})" if self.classes else ""
        rank_zero_info(f"{root}: {', '.join(counts)}{of}")
        if "test" in parts and self.test_size is not None:
            raise DataError(f"ImageFolder: {parts['test']} has the images for test: leave out test_size")
        if "test" not in parts:
            held_out = max(1, len(found) // 10) if self.test_size is None else self.test_size
            if held_out >= len(found):
                raise DataError(f"ImageFolder: test_size={held_out} leaves none of {len(found)} images to train on")
            rows = {"test": rows["train"][:held_out], "train": rows["train"][held_out:]}
        return found, rows

    @staticmethod
    def _labelled(images: list[Path], folder: Path, listing: Listing) -> tuple[list[tuple[Path, int]], list[str]]:
        """The images below a folder with their labels, and its classes, none if it is flat.

        Raises:
            DataError: There are none; some lie in the folder itself and some below it; or classes hold splits.
        """
        groups = by_folder(images, folder)
        classes = sorted(name for name in groups if name)
        if not groups:
            rest = listing.describe_rest()
            there = f" (it has {rest})" if rest else ""
            raise DataError(f"{folder} has no images that can be read{there}: name another as data_dir")
        if "" in groups and classes:
            raise DataError(
                f"{folder} has images beside folders of images ({classes[0]}, ...): sort them into one kind"
            )
        for below in {path.parent for path in images}:
            name, *deeper = below.relative_to(folder).parts or ("",)
            if within := next(filter(split_of, deeper), None):
                raise DataError(
                    f"{folder / name}, which would be a class, has a folder {within} that looks like a split: name "
                    f"{folder / name} as data_dir, or rename {within}"
                )
        labels = {name: label for label, name in enumerate(classes)} or {"": 0}
        return [(path, label) for name, label in labels.items() for path in groups[name]], classes

    # ---- splits

    def setup(self, stage: str | None = None) -> None:
        """Map the images; what a split holds are numbers of images."""
        if self._sets:
            return
        images, labels, numbers = self._open()
        self._rows = numbers
        if "val" not in numbers:
            train, val = self._split(len(numbers["train"]))
            self._rows = numbers | {"train": numbers["train"][train], "val": numbers["train"][val]}
        self._sets = dict.fromkeys(self._rows, (images, labels))

    def stored(self, split: Split) -> tuple[Tensor, Tensor]:
        """A split, in memory."""
        images, labels, numbers = self._open()
        return images[numbers[split]], labels[numbers[split]]

    def labels_of(self, split: Split) -> Tensor:
        _, labels, numbers = self._open()
        return labels[numbers[split]]

    def describe_test(self) -> str:
        size = self.image_shape[-1]
        return f"test images of the folder {self.data_dir.name}, scaled and cut to {size}x{size}, 8-bit"
