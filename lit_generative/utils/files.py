"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: Path, mode: str = "wb", shared: bool = False, **options: Any) -> Iterator[IO[Any]]:
    """A file opened beside ``path``, in a folder made for it, which takes its place if the block ends without an error.

    One that is interrupted leaves ``.<name>.part`` behind, for the next to write over; ``shared`` says that another
    process may write the same at once, and gives it a name of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside it: nothing is renamed from one disk to another
    aside = path.with_name(f".{path.name}{f'.{os.getpid()}' * shared}.part")
    try:
        with aside.open(mode, **options) as file:
            yield file
        aside.replace(path)
    except BaseException:
        with suppress(OSError):  # a disk that is gone holds nothing to remove
            aside.unlink(missing_ok=True)
        raise


def unused(path: Path) -> Path:
    """``path``, or if there is something already ``a_2.txt``, ``a_3.txt``, ... in place of ``a.txt``."""
    free, n = path, 1
    while free.exists():
        n += 1
        free = path.with_stem(f"{path.stem}_{n}")
    return free


def set_aside(*paths: Path) -> None:
    """Rename those files that are there, so that new ones of their names do not take their place: see `unused`."""
    for path in paths:
        if path.exists():
            path.rename(unused(path))


def require_new(*paths: Path) -> None:
    """Raise a FileExistsError if one of them is there already."""
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists already: choose another folder, or remove it")
