"""A folder of pairs of images of any kind."""

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

    ``data_dir`` contains one of these, where other common names of splits (`folders.SPLITS`) will do, too:

    * ``train`` and ``test`` or ``val``, each with images of pairs or with folders ``A`` and ``B``; ``val`` is for
      validation if there are both, else for testing;
    * ``A`` and ``B``, each with ``train`` and ``test``;
    * ``trainA``, ``trainB``, ``testA`` and ``testB``;
    * no splits: images of pairs, or folders ``A`` and ``B`` of images.

    Without a split for testing, a tenth of the pairs is held out for it. Names are compared in Unicode's form NFC.
    Images of any size are scaled to squares, whatever their aspect ratio.

    Args:
        data_dir: The folder; default $LIT_GENERATIVE_DATA, else ``data``.
        image_size: Height and width of the images that the model sees.
        labels: The side, if any, whose colours are labels, and so must not be mixed by scaling.
        pairs: Arguments of `PairedImages`.

    Raises:
        DataError: There are no pairs, one image of a pair is missing, or images cannot be read.
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
                raise DataError(f"{root} must have >= 3 pairs, for training, validation and test; got {len(pairs)}")
            drawn = [pairs[i] for i in self._permutation(len(pairs)).tolist()]
            held_out = max(1, len(pairs) // 10)
            return {"train": drawn[held_out:], "test": drawn[:held_out]}
        return used_splits(found, root)

    def read_pair(self, files: Files, size: int) -> np.ndarray:
        if len(files) == 2:
            a, b = (open_image(path) for path in files)
            if abs(a.width * b.height / (a.height * b.width) - 1) > 0.02:  # widths and heights may be rounded
                raise UserError(f"{a.width}x{a.height} and {b.width}x{b.height} pixels differ in aspect ratio")
        else:
            a, b = halves(files[0])
        return np.concatenate([scaled(image, size, labels=side == self.labels) for image, side in ((a, "a"), (b, "b"))])

    def describe_pair(self) -> str:
        return "RGB" if self.labels == "none" else f"RGB, {self.labels} are labels"


def place_of(folders: Iterable[str]) -> tuple[str, str] | None:
    """The split and the side ("a", "b") that a path of folders names, "" for either it does not; None: another layout.

    Recognised are ``train``, ``train/A``, ``A/train``, ``trainA``, ``A``, and the same of other splits, in any case.
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


def sides_of(listing: Listing) -> dict[str, dict[str, list[Path]]]:
    """The images of a folder by split and by side ("a", "b", "" for images of both), as `place_of` reads the folders.

    If no folder names a split, the only one is "". Other images are left out.

    Raises:
        DataError: Two folders are for the same split and side, or that of a split is empty.
    """
    root, images = listing.root, dict[Path, list[Path]]()
    for path in listing.images:
        images.setdefault(path.parent, []).append(path)
    places: dict[str, dict[str, list[Path]]] = {}
    for folder, own in images.items():
        place = place_of(folder.relative_to(root).parts)
        if place is None:
            listing.leave_out(own)
        elif (other := places.setdefault(place[0], {}).setdefault(place[1], own)) is not own:
            raise DataError(f"{other[0].parent} and {folder} are for the same images: keep one of them")
    if any(places):
        listing.require_full(lambda parts: (place_of(parts) or ("",))[0])
    if len(places) > 1:  # images next to folders of splits belong to none
        for own in places.pop("", {}).values():
            listing.leave_out(own)
    for sides in places.values():
        if "" in sides and len(sides) > 1:
            listing.leave_out(sides.pop(""))
        if len(sides) == 1 and "" not in sides:
            ((side, own),) = sides.items()
            raise DataError(f"{own[0].parent} needs a folder of images of side {'B' if side == 'a' else 'A'}: add it")
    return places


def find_pairs(root: Path, skip_broken: bool) -> dict[str, list[Files]]:
    """The pairs of every split: halves of one image, or images with the same names in two folders.

    If no folder names a split, the only one is "". What is left out is logged.

    Raises:
        DataError: There are none, one image of a pair is missing, or two folders are for the same split and side.
    """
    listing = Listing(root, skip_broken)
    found: dict[str, list[Files]] = {}
    for split, sides in sides_of(listing).items():
        if "" in sides:
            own = sides[""]
            rank_zero_info(f"{len(own)} pairs: the left and right halves of the images in {own[0].parent}")
            found[split] = [(path,) for path in own]
        else:
            found[split] = two_folders(sides["a"], sides["b"])
    if not found:
        rest = listing.describe_rest()
        raise DataError(
            f"{root} has no pairs{f' (it has {rest})' if rest else ''}: add images of two halves side by side, or "
            "folders A and B of images with the same names"
        )
    listing.report()
    return found


def pairs_in(folder: Path, skip_broken: bool) -> list[Files]:
    """The pairs of a folder that must have no splits."""
    found = find_pairs(folder, skip_broken)
    if found.keys() != {""}:
        raise DataError(f"{folder} is one split, but has folders of splits ({', '.join(found)}): move these out of it")
    return found[""]


def two_folders(a: list[Path], b: list[Path]) -> list[Files]:
    """Pair the images of two folders by name without extension."""
    named_a, named_b = ({nfc(path.stem): path for path in images} for images in (a, b))
    for images, named in ((a, named_a), (b, named_b)):
        if twice := [path.name for path in images if path not in named.values()]:
            folder = images[0].parent
            raise DataError(f"{folder} has images of the same name in several formats: {listed(twice)}: keep one each")
    if alone := sorted(named_a.keys() ^ named_b.keys()):
        missing = listed([named_a.get(name) or named_b[name] for name in alone])
        counts = ", ".join(f"{len(images)} in {images[0].parent}" for images in (a, b))
        raise DataError(
            f"{len(alone)} images have no counterpart ({counts}): {missing}: add the counterparts or remove these"
        )
    return [(path, named_b[name]) for name, path in sorted(named_a.items())]


def halves(path: Path) -> tuple[Image.Image, Image.Image]:
    """The left and the right half of an image, or a `UserError` with the reason why it cannot be halved."""
    both = open_image(path)
    width, height = both.size
    if width % 2:
        raise UserError(f"{width}x{height} pixels cannot be halved: the width must be even")
    return both.crop((0, 0, width // 2, height)), both.crop((width // 2, 0, width, height))


def scaled(image: Image.Image, size: int, labels: bool) -> np.ndarray:
    """An image scaled to uint8 ``(C, size, size)``: labels to the nearest pixel, others bilinearly."""
    how = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR  # antialiased by Pillow
    levels = np.asarray(image.resize((size, size), how))
    return np.ascontiguousarray(levels.transpose(2, 0, 1) if levels.ndim == 3 else levels[None])
