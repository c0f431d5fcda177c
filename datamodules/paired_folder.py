"""Any folder of pairs of images."""

from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from datamodules.files import DataError
from datamodules.image_cache import SUFFIXES, Files, open_image
from datamodules.pairs import Direction, PairedImages
from lit_generative.errors import UserError


class PairedFolder(PairedImages):
    """Pairs side by side in one image (a on the left), or two folders of images with the same names.

    Below ``data_dir`` lie ``train`` and ``test`` or ``val`` (with both, ``val`` is for validation, else for test), each
    with images of pairs, or with folders ``A`` and ``B``; or folders ``trainA``, ``trainB``, ``testA`` and ``testB``.
    Without these, the images or the folders ``A`` and ``B`` lie in ``data_dir`` itself, and a tenth is for test. Images
    of any size are squeezed into squares.

    Args:
        labels: The side, if any, whose colours are labels: never mixed by scaling.

    The others are those of `PairedImages`.

    Raises:
        DataError: There are no pairs, halves are missing, or images cannot be read.
    """

    stored_depends_on = (*PairedImages.stored_depends_on, "labels")

    def __init__(
        self,
        data_dir: str | None = None,
        image_size: int = 256,
        load_size: int | None = None,
        direction: Direction = "a_to_b",
        labels: Literal["none", "a", "b"] = "none",
        batch_size: int = 1,
        val_size: int | None = None,
        random_flip: bool = True,
        skip_broken: bool = False,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            data_dir, image_size, load_size, direction, batch_size, val_size, random_flip, skip_broken, cache_dir, seed
        )
        self.labels = labels

    def find_pairs(self) -> dict[str, list[Files]]:
        root = self.data_dir
        if not root.is_dir():
            raise DataError(f"there is no folder {root}: name the folder of the pairs as data_dir")
        found = {}
        for name in ("train", "test", "val"):
            if (root / f"{name}A").is_dir() or (root / f"{name}B").is_dir():
                found[name] = two_folders(root / f"{name}A", root / f"{name}B")
            elif (root / name).is_dir():
                found[name] = pairs_in(root / name)
        if "train" not in found:
            pairs = pairs_in(root)
            if len(pairs) < 3:
                raise DataError(f"{root} has {len(pairs)} pairs: training, validation and test need one each")
            test, train = self.drawn(len(pairs), max(1, len(pairs) // 10))
            return {"train": [pairs[i] for i in train], "test": [pairs[i] for i in test]}
        if "test" not in found:
            if "val" not in found:
                raise DataError(f"{root} has a folder for training, but none for test: add {root / 'test'}")
            found["test"] = found.pop("val")
        return found

    def read_pair(self, files: Files, size: int) -> np.ndarray:
        if len(files) == 2:
            a, b = (open_image(path) for path in files)
            if abs(a.width * b.height / (a.height * b.width) - 1) > 0.02:  # sides may be rounded
                raise UserError(f"{a.width}x{a.height} and {b.width}x{b.height} pixels are of two shapes")
        else:
            a, b = halves(files[0])
        return np.concatenate([scaled(image, size, labels=side == self.labels) for image, side in ((a, "a"), (b, "b"))])

    def describe_pair(self) -> str:
        return "RGB" if self.labels == "none" else f"RGB, {self.labels} are labels"


def images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")


def pairs_in(folder: Path) -> list[Files]:
    """Those of folders A and B in ``folder``, else its own images."""
    if (folder / "A").is_dir() or (folder / "B").is_dir():
        return two_folders(folder / "A", folder / "B")
    if not (images := images_in(folder)):
        raise DataError(
            f"{folder} has no pairs: put images of two halves side by side there, or folders A and B of images with "
            "the same names"
        )
    rank_zero_info(f"{len(images)} pairs, the left and the right halves of the images in {folder}")
    return [(path,) for path in images]


def two_folders(a: Path, b: Path) -> list[Files]:
    """Images with the same names, whatever their formats."""
    for folder, other in ((a, b), (b, a)):
        if not folder.is_dir():
            raise DataError(f"{other} is there, but not {folder}, the other halves")
    named_a, named_b = ({path.stem: path for path in images_in(folder)} for folder in (a, b))
    for folder, named in ((a, named_a), (b, named_b)):
        if twice := [path.name for path in images_in(folder) if path not in named.values()]:
            raise DataError(f"{folder} has several images of one name in several formats: {', '.join(twice[:10])}")
    if alone := sorted(named_a.keys() ^ named_b.keys()):
        missing = [f"{(named_a.get(name) or named_b[name])}" for name in alone[:10]]
        raise DataError(
            f"{len(alone)} images have no other half ({len(named_a)} in {a}, {len(named_b)} in {b}): "
            f"{', '.join(missing)}{', ...' * (len(alone) > 10)}: add the others, or remove these"
        )
    if not named_a:
        raise DataError(f"{a} and {b} have no images ({', '.join(sorted(SUFFIXES))})")
    return [(path, named_b[name]) for name, path in sorted(named_a.items())]


def halves(path: Path) -> tuple[Image.Image, Image.Image]:
    """The left and the right half of an image; ValueError says why there are none."""
    both = open_image(path)
    width, height = both.size
    if width % 2:
        raise UserError(f"{width}x{height} pixels are not two halves side by side")
    return both.crop((0, 0, width // 2, height)), both.crop((width // 2, 0, width, height))


def scaled(image: Image.Image, size: int, labels: bool) -> np.ndarray:
    """Levels ``(3, size, size)``, or ``(1, size, size)`` of one channel: labels by the nearest pixel, else smoothly."""
    how = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR  # which averages where it shrinks
    levels = np.asarray(image.resize((size, size), how))
    return np.ascontiguousarray(levels.transpose(2, 0, 1) if levels.ndim == 3 else levels[None])
