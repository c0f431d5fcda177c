"""Any folder of pairs of images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from datamodules.files import DataError, listed
from datamodules.folders import Listing, nfc, split_of, used_splits
from datamodules.image_cache import Files, open_image
from datamodules.pairs import PairedImages
from lit_generative.errors import UserError


class PairedFolder(PairedImages):
    """Pairs side by side in one image (a on the left), or two folders of images with the same names.

    Below ``data_dir`` lie ``train`` and ``test`` or ``val`` (with both, ``val`` is for validation, else for test; their
    other usual names: `folders.SPLITS`), each with images of pairs, or with folders ``A`` and ``B``; or folders ``A``
    and ``B``, each with ``train`` and ``test``; or folders ``trainA``, ``trainB``, ``testA`` and ``testB``. Without one
    for test, a tenth is for test; without any, the images or the folders ``A`` and ``B`` lie in ``data_dir`` itself.
    Names are the same if they look so (Unicode's form NFC). Images of any size are squeezed into squares.

    Args:
        data_dir: The folder; default $LIT_GENERATIVE_DATA, else ``data``.
        image_size: Height and width of the images that a model gets.
        labels: The side, if any, whose colours are labels: never mixed by scaling.
        pairs: Arguments of `PairedImages`.

    Raises:
        DataError: There are no pairs, halves are missing, or images cannot be read.
    """

    stored_depends_on = (*PairedImages.stored_depends_on, "labels")

    def __init__(
        self,
        data_dir: str | None = None,
        image_size: int = 256,
        labels: Literal["none", "a", "b"] = "none",
        **pairs: Any,
    ) -> None:
        super().__init__(data_dir, image_size, **pairs)
        self.labels = labels

    def find_pairs(self) -> dict[str, list[Files]]:
        root = self.data_dir
        found = find_pairs(root, self.skip_broken)
        if found.keys() in ({""}, {"train"}):
            (pairs,) = found.values()
            if len(pairs) < 3:
                raise DataError(f"{root} has {len(pairs)} pairs: training, validation and test need one each")
            test, train = self.drawn(len(pairs), max(1, len(pairs) // 10))
            return {"train": [pairs[i] for i in train], "test": [pairs[i] for i in test]}
        return used_splits(found, root)

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


def place_of(folders: Iterable[str]) -> tuple[str, str] | None:
    """The split and the side ("a", "b") of images below such folders, "" for what these do not say; None: no place.

    Known are ``train``, ``train/A``, ``A/train``, ``trainA``, ``A``, and the same of other splits, in any case.
    """
    split = side = ""
    for folder in folders:
        name = folder.casefold()
        stem, end = (name[:-1].rstrip(" _-"), name[-1]) if name[-1] in "ab" and split_of(name) is None else (name, "")
        own = split_of(stem) or ""
        if (stem and not own) or (own and split) or (end and side):
            return None
        split, side = split or own, side or end
    return split, side


def find_pairs(root: Path, skip_broken: bool) -> dict[str, list[Files]]:
    """The pairs of every split: halves of one image, or images with the same names in two folders.

    Where no folder is that of a split, those of the split "". A line says what is left out.

    Raises:
        DataError: There are none; or other halves are missing, or two folders are for the same.
    """
    listing = Listing(root, skip_broken)
    images: dict[Path, list[Path]] = {}
    for path in listing.images:
        images.setdefault(path.parent, []).append(path)
    places: dict[str, dict[str, Path]] = {}
    for folder, own in images.items():
        place = place_of(folder.relative_to(root).parts)
        if place is None:
            listing.leave_out(own)
        elif (other := places.setdefault(place[0], {}).setdefault(place[1], folder)) != folder:
            raise DataError(f"{other} and {folder} are both for the same: leave one")
    if any(places):
        listing.require_full(lambda parts: (place_of(parts) or ("",))[0])
    if len(places) > 1:  # what lies beside folders of splits is in none
        for folder in places.pop("", {}).values():
            listing.leave_out(images[folder])
    found: dict[str, list[Files]] = {}
    for split, sides in places.items():
        whole = sides.pop("", None)
        if whole and sides:
            listing.leave_out(images[whole])
        elif whole:
            rank_zero_info(f"{len(images[whole])} pairs, the left and the right halves of the images in {whole}")
            found[split] = [(path,) for path in images[whole]]
        if len(sides) == 1:
            ((side, folder),) = sides.items()
            raise DataError(f"{folder} is there, but not one of side {'B' if side == 'a' else 'A'}, the other halves")
        if sides:
            found[split] = two_folders(*((sides[side], images[sides[side]]) for side in "ab"))
    if not found:
        rest = listing.describe_rest()
        raise DataError(
            f"{root} has no pairs: put images of two halves side by side there, or folders A and B of images with the "
            f"same names{f' (it has {rest})' if rest else ''}"
        )
    listing.tell()
    return found


def pairs_in(folder: Path, skip_broken: bool) -> list[Files]:
    """The pairs of a folder that has no splits."""
    found = find_pairs(folder, skip_broken)
    if found.keys() != {""}:
        raise DataError(f"{folder} is one split, and has folders of others: {', '.join(found)}")
    return found[""]


def two_folders(a: tuple[Path, list[Path]], b: tuple[Path, list[Path]]) -> list[Files]:
    """Two folders, each with its images, as pairs of images with the same names, whatever their formats."""
    named_a, named_b = ({nfc(path.stem): path for path in images} for _, images in (a, b))
    for (folder, images), named in ((a, named_a), (b, named_b)):
        if twice := [path.name for path in images if path not in named.values()]:
            raise DataError(f"{folder} has several images of one name in several formats: {listed(twice)}")
    if alone := sorted(named_a.keys() ^ named_b.keys()):
        missing = listed([named_a.get(name) or named_b[name] for name in alone])
        raise DataError(
            f"{len(alone)} images have no other half ({len(named_a)} in {a[0]}, {len(named_b)} in {b[0]}): {missing}: "
            "add the others, or remove these"
        )
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
