"""The contents of a folder of images: its images, its splits, and whatever is left out."""

import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar
from unicodedata import normalize

from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from datamodules.files import DataError, listed

T = TypeVar("T")

# Formats that Pillow recognises but cannot decode itself; it passes EPS to Ghostscript, which would execute it
NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"})
# The split that a folder of this name holds, whatever its case
SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "tests", "testing", "tst", "holdout"), "test"),
}


def formats() -> list[str]:
    """The formats that Pillow can decode, in the order in which it tries them."""
    Image.init()
    return [kind for kind in Image.ID if kind not in NOT_READ]


def is_image(path: Path) -> bool:
    """Whether the file's extension is that of a format Pillow can decode."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind is not None and kind not in NOT_READ


def nfc(name: str) -> str:
    """A file name in Unicode's composed form NFC, so that names that look alike compare equal."""
    return normalize("NFC", name)


def split_of(name: str) -> str | None:
    """The split ("train", "val", "test") that a folder of this name holds, if any."""
    return SPLITS.get(name.casefold())


def _resembles_split(name: str) -> bool:
    """Whether one word of the name is a split's, as in train2017, seg_test or TrainSet."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return any(split_of(word) or split_of(word.casefold().removesuffix("set")) for word in words)


def find_splits(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Map each split to one of the folders ``names`` in ``root``; empty if the folders are classes.

    Raises:
        DataError: Two folders are for one split, or some but not all look like splits.
    """
    names = sorted(names)
    known = [name for name in names if split_of(name)]
    alike = [name for name in names if name not in known and _resembles_split(name)]
    found = {str(split_of(name)): name for name in known}
    rest = len(names) - len(known)
    if len(found) < len(known):
        raise DataError(f"{root} has two folders for one split ({listed(known)}): keep one of them")
    if (known and alike) or (len(known) == 1 and rest) or (not known and 2 * len(alike) > rest):
        others = [name for name in names if name not in (*known, *alike)]
        next_to = f" next to {listed(others)}" if others else ""
        raise DataError(
            f"{root} has folders that look like splits ({listed([*known, *alike])}){next_to}: if they are splits, name "
            "them train, val and test and move the others away; if they are classes, rename them"
        )
    return found


def used_splits(found: dict[str, T], root: Path) -> dict[str, T]:
    """Splits by their use: if there is none for testing, the validation split is used for it.

    Raises:
        DataError: There is none for training.
    """
    if found and "train" not in found:
        raise DataError(f"{root} has folders for {' and '.join(found)}, but none for training: add {root / 'train'}")
    if "val" in found and "test" not in found:
        return {"test" if split == "val" else split: value for split, value in found.items()}
    return found


def by_folder(images: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Group the images below ``root`` by its subfolder that contains them; "" for those in ``root`` itself."""
    parents = {folder: folder.relative_to(root).parts for folder in {path.parent for path in images}}
    names = {folder: nfc(parts[0]) if parts else "" for folder, parts in parents.items()}
    groups: dict[str, list[Path]] = {}
    for path in images:
        groups.setdefault(names[path.parent], []).append(path)
    return groups


class Listing:
    """The images below a folder, sorted by path, and a record of everything else found there.

    Links are followed. Hidden files and folders are ignored.

    Args:
        root: The folder.
        skip_broken: Leave out what cannot be read and report it, instead of raising an error.
        deep: Search subfolders, too.

    Raises:
        DataError: The folder does not exist; or parts of it cannot be read and ``skip_broken`` is false.
    """

    def __init__(self, root: Path, skip_broken: bool = False, deep: bool = True) -> None:
        try:
            if not root.is_dir():
                raise DataError(f"there is no folder {root}: set data_dir to the folder of the images")
        except OSError as error:
            raise DataError(f"{root} cannot be read ({error.strerror}): check its parents' permissions") from error
        self.root, self.images = root, list[Path]()
        self._unread: list[str] = []  # for each path that cannot be read, the reason and the remedy
        self._others: Counter[str] = Counter()  # files that are not images, by extension
        self._unused: Counter[str] = Counter()  # images outside the expected layout, by folder
        self._seen: dict[Path, Path] = {}  # folders, by their resolved paths
        waiting = [root]
        for folder in waiting:
            below = self._look(folder)
            if deep:
                waiting += below
            else:
                self._others["folders"] += len(below)
        self.images.sort()
        full = {above for folder in {path.parent for path in self.images} for above in (folder, *folder.parents)}
        empty = [folder for folder in waiting if folder not in full and folder.parent in full]
        self._empty = [folder.relative_to(root) for folder in empty]
        if self._unread and not skip_broken:
            raise DataError(listed(self._unread, "; "))

    def _look(self, folder: Path) -> list[Path]:
        """Record the files in a folder, and return its subfolders."""
        folders: list[Path] = []
        try:
            first = self._seen.setdefault(folder.resolve(), folder)
            if first != folder:
                self._unread.append(f"{folder} is a link to {first}, whose images would be counted twice: remove it")
                return []
            paths = sorted(folder.iterdir())
        except OSError as error:
            self._unread.append(f"{folder} cannot be read ({error.strerror}): check its permissions")
            return []
        for path in paths:
            if path.name.startswith("."):
                continue
            try:
                mode = path.stat().st_mode
            except OSError as error:
                if is_image(path):
                    self.images.append(path)  # a broken image, reported when it is decoded
                elif path.is_symlink():
                    self._unread.append(f"{path} is a link to {path.readlink()}, which does not exist: remove it")
                else:
                    self._unread.append(f"{path} cannot be read ({error.strerror}): check its permissions")
                continue
            if stat.S_ISDIR(mode):
                folders.append(path)
            elif stat.S_ISREG(mode) and is_image(path):
                self.images.append(path)
            else:
                self._others[path.suffix.lower() or "without an extension"] += 1
        return folders

    def leave_out(self, images: Iterable[Path]) -> None:
        """Record that these images are outside the expected layout."""
        self._unused.update(str(path.parent.relative_to(self.root)) for path in images)

    def require_full(self, is_split: Callable[[tuple[str, ...]], object]) -> None:
        """Raise a `DataError` if the folder of a split is empty, lest its images are taken from another split."""
        if empty := [folder for folder in self._empty if is_split(folder.parts)]:
            rest = listed(self._unread, "; ") or self.describe_rest()
            raise DataError(f"{self.root} has no readable images in {listed(empty)} ({rest}): add some or remove it")

    def describe_rest(self) -> str:
        """What is left out, in words; empty if nothing is."""
        parts = [f"{n:,} {ending}" for ending, n in self._others.most_common() if n]
        parts += [f"{n:,} images in {'it' if name == '.' else name}" for name, n in self._unused.items()]
        texts = [listed(parts)] if parts else []
        return "; ".join(texts + ([f"no images in {listed(self._empty)}"] if self._empty else []))

    def report(self) -> None:
        """Log what is left out; call once, after all calls of `leave_out`."""
        if self._unread:
            rank_zero_info(f"left out: {listed(self._unread, '; ')}")
        if rest := self.describe_rest():
            rank_zero_info(f"left out of {self.root}: {rest}")
