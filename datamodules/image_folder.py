"""Any folder of images."""

from pathlib import Path

import torch
from torch import Generator, Tensor

from datamodules.base import ImageData, Split
from datamodules.files import DataError
from datamodules.image_cache import SUFFIXES, cached, decode
from lit_generative.statistics import cache_folder


class ImageFolder(ImageData):
    """The images below a folder: flat, or one folder per class, whose labels follow the folders' names.

    Where it has folders ``train`` and ``test``, each laid out so, these are the splits, and ``val`` is that for
    validation; with ``train`` and ``val`` alone, ``val`` is for test. What is lacking is split off by ``seed``, anew
    when images are added or removed. Images of any size, mode and format become 8-bit squares once; those are kept in a
    file that is mapped into memory, so that memory does not grow with the folder, and made anew when an image changes.

    Args:
        data_dir: The folder; default $LIT_GENERATIVE_DATA, else ``data``.
        image_size: Height and width: the shorter side is scaled to it, the middle is cut out.
        channels: 3 for RGB, 1 for grey.
        batch_size: Images per batch and process.
        val_size: Images held out for validation; default: a tenth of the training images.
        test_size: Images held out for test; default: a tenth of all. Not with folders ``train`` and ``test``.
        random_flip: Mirror training images with probability 1/2.
        skip_broken: Leave out what cannot be read, with a line that lists it, instead of an error.
        cache_dir: Where the file is kept; default ``~/.cache/lit-generative``.
        seed: Of the splits and of the order of training.

    Raises:
        DataError: There are no images, or some cannot be read, or the folders do not fit together.
    """

    val_share = 10
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
                "ImageFolder: channels are 1 or 3, image_size starts at 1, test_size at 0; got "
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
        root = self.data_dir
        try:
            if not root.is_dir():
                raise DataError(f"there is no folder {root}: name the folder of the images as data_dir")
            parts = [root / name for name in ("train", "test", "val") if (root / name).is_dir()]
            if len(parts) > 1 and parts[0].name == "train":
                return self._find_parts(parts)
            found, self.classes = scan(root)
        except OSError as error:
            raise DataError(f"{root} cannot be read ({error.strerror}): check its permissions") from error
        held_out = len(found) // 10 if self.test_size is None else self.test_size
        if held_out >= len(found):
            raise DataError(f"ImageFolder: test_size={held_out} leaves none of {len(found)} images to train on")
        order = torch.randperm(len(found), generator=Generator().manual_seed(self.seed))
        return found, {"test": order[:held_out], "train": order[held_out:]}

    def _find_parts(self, parts: list[Path]) -> tuple[list[tuple[Path, int]], dict[str, Tensor]]:
        if self.test_size is not None:
            raise DataError(f"ImageFolder: {parts[1]} has the images for test: leave out test_size")
        found: list[tuple[Path, int]] = []
        splits: dict[str, Tensor] = {}
        for part, name in zip(parts, ("train", "test", "val"), strict=False):
            images, classes = scan(part)
            if found and classes != self.classes:
                differing = ", ".join(sorted(set(classes) ^ set(self.classes)))
                raise DataError(f"{parts[0]} and {part} have different classes: {differing} in one of them only")
            self.classes = classes
            # in a random order: a batch shows all classes
            splits[name] = len(found) + torch.randperm(len(images), generator=Generator().manual_seed(self.seed))
            found += images
        return found, splits

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


def scan(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """The images of a folder with their labels, in the order of their names, and its classes (none if it is flat).

    Raises:
        DataError: There are none; or some lie in the folder itself and some in folders below it.
    """
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    flat = [path for path in entries if path.suffix.lower() in SUFFIXES]
    below = {path.name: _images_below(path) for path in entries if path.is_dir()}
    classes = [name for name, images in below.items() if images]
    if flat and classes:
        raise DataError(f"{folder} has images beside folders of images ({classes[0]}, ...): sort them into one kind")
    if not flat and not classes:
        raise DataError(
            f"{folder} has no images ({', '.join(sorted(SUFFIXES))}), nor have the folders in it: name another as "
            "data_dir"
        )
    if flat:
        return [(path, 0) for path in flat], []
    return [(path, label) for label, name in enumerate(classes) for path in below[name]], classes


def _images_below(folder: Path) -> list[Path]:
    hidden = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in hidden if not any(part.startswith(".") for part in path.relative_to(folder).parts))
