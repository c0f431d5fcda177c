"""What a folder of images holds: its images, its splits, and what is left out."""

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

# Pillow recognises these, but does not read them itself; EPS goes to Ghostscript, which executes it
NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"})
# names of folders, in any case
SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "tests", "testing", "tst", "holdout"), "test"),
}


def formats() -> list[str]:
    """What Pillow reads, in the order in which it tries."""
    Image.init()
    return [kind for kind in Image.ID if kind not in NOT_READ]


def is_image(path: Path) -> bool:
    """Whether Pillow reads files with this ending."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind is not None and kind not in NOT_READ


def nfc(name: str) -> str:
    """A file's name in the one of its Unicode forms that most systems write: two that look alike become equal."""
    return normalize("NFC", name)


def split_of(name: str) -> str | None:
    """The split ("train", "val", "test") that a folder of this name holds."""
    return SPLITS.get(name.casefold())


def _resembles_split(name: str) -> bool:
    """Whether one of its words names a split: train2017, seg_test, TrainSet."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return any(split_of(word) or split_of(word.casefold().removesuffix("set")) for word in words)


def find_splits(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Which of the folders ``names`` of images in ``root`` holds which split; empty where they are classes.

    Raises:
        DataError: Some look like splits, but not all: nothing is guessed.
    """
    names = sorted(names)
    known = [name for name in names if split_of(name)]
    alike = [name for name in names if name not in known and _resembles_split(name)]
    found = {str(split_of(name)): name for name in known}
    rest = len(names) - len(known)
    if len(found) < len(known):
        raise DataError(f"{root} has two folders for one split ({listed(known)}): leave one")
    if (known and alike) or (len(known) == 1 and rest) or (not known and 2 * len(alike) > rest):
        others = [name for name in names if name not in (*known, *alike)]
        beside = f", beside {listed(others)}" if others else ""
        raise DataError(
            f"{root} has folders that look like splits ({listed([*known, *alike])}){beside}: if they are, call them "
            "train, val and test, and move others away; if they are classes, rename them"
        )
    return found


def used_splits(found: dict[str, T], root: Path) -> dict[str, T]:
    """Splits by what they are used for: where none is for test, that for validation is.

    Raises:
        DataError: None is for training.
    """
    if found and "train" not in found:
        raise DataError(f"{root} has folders for {' and '.join(found)}, but none for training: add {root / 'train'}")
    if "val" in found and "test" not in found:
        return {"test" if split == "val" else split: value for split, value in found.items()}
    return found


def by_folder(images: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Images below ``root`` by the folder in it that they lie in; "" for those in ``root`` itself."""
    parents = {folder: folder.relative_to(root).parts for folder in {path.parent for path in images}}
    names = {folder: nfc(parts[0]) if parts else "" for folder, parts in parents.items()}
    groups: dict[str, list[Path]] = {}
    for path in images:
        groups.setdefault(names[path.parent], []).append(path)
    return groups


class Listing:
    """The images below a folder, in the order of their paths, with an account of what else is there.

    Links are followed. Hidden files and folders are ignored.

    Args:
        root: The folder.
        skip_broken: Leave out what cannot be read, and say what.
        deep: Look into the folders below.

    Raises:
        DataError: There is no such folder; or some of it cannot be read, and is not to be skipped.
    """

    def __init__(self, root: Path, skip_broken: bool = False, deep: bool = True) -> None:
        try:
            if not root.is_dir():
                raise DataError(f"there is no folder {root}: name the folder of the images as data_dir")
        except OSError as error:
            raise DataError(f"{root} cannot be read ({error.strerror}): check the permissions above it") from error
        self.root, self.images = root, list[Path]()
        self._unread: list[str] = []  # what cannot be read, why, and what to do
        self._others: Counter[str] = Counter()  # files that are no images, by ending
        self._unused: Counter[str] = Counter()  # images that the layout has no place for, by folder
        self._seen: dict[Path, Path] = {}  # folders, by where they really are
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
        """Take the images in a folder, and give the folders in it."""
        folders: list[Path] = []
        try:
            first = self._seen.setdefault(folder.resolve(), folder)
            if first != folder:
                self._unread.append(f"{folder} is a link to {first}, whose images would count twice: remove it")
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
                    self.images.append(path)  # that is broken
                elif path.is_symlink():
                    self._unread.append(f"{path} is a link to {path.readlink()}, which is not there: remove it")
                else:
                    self._unread.append(f"{path} cannot be read ({error.strerror}): check its permissions")
                continue
            if stat.S_ISDIR(mode):
                folders.append(path)
            elif stat.S_ISREG(mode) and is_image(path):
                self.images.append(path)
            else:
                self._others[path.suffix.lower() or "without an ending"] += 1
        return folders

    def leave_out(self, images: Iterable[Path]) -> None:
        """Count images that the layout has no place for."""
        self._unused.update(str(path.parent.relative_to(self.root)) for path in images)

    def require_full(self, is_split: Callable[[tuple[str, ...]], object]) -> None:
        """Raise a DataError if the folder of a split has no images: none is then drawn from another split."""
        if lost := [folder for folder in self._empty if is_split(folder.parts)]:
            rest = listed(self._unread, "; ") or self.describe_rest()
            raise DataError(f"{self.root} has no images that can be read in {listed(lost)} ({rest}): fill or remove it")

    def describe_rest(self) -> str:
        """What is left out, in words; empty if nothing."""
        parts = [f"{n:,} {ending}" for ending, n in self._others.most_common() if n]
        parts += [f"{n:,} images in {'it' if name == '.' else name}" for name, n in self._unused.items()]
        texts = [listed(parts)] if parts else []
        return "; ".join(texts + ([f"no images in {listed(self._empty)}"] if self._empty else []))

    def tell(self) -> None:
        """Say what is left out; once, when the images have their places."""
        if self._unread:
            rank_zero_info(f"left out: {listed(self._unread, '; ')}")
        if rest := self.describe_rest():
            rank_zero_info(f"left out of {self.root}: {rest}")
