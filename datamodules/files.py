"""Finding, downloading and reading files; the user's files are never overwritten or deleted."""

import gzip
import os
import socket
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lit_generative.errors import UserError

TIMEOUT = 10.0  # seconds to wait for a download server to answer


class DataError(UserError):
    """A data set is missing, damaged or not the expected one, or an option does not fit it."""


def listed(items: Sequence[object], between: str = ", ") -> str:
    """The first ten items as text, followed by the total if there are more."""
    more = f"{between}... ({len(items):,} in all)" if len(items) > 10 else ""
    return between.join(map(str, items[:10])) + more


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed if its name ends in .gz.

    Raises:
        DataError: The file cannot be read or is damaged gzip.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}): delete it and get it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


def find(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Those of the named files that are in the folder, by name; a plain file takes precedence over its .gz."""
    paths = [(name, folder / f"{name}{end}") for name in names for end in (".gz", "")]
    try:
        return {name: path for name, path in paths if path.exists()}
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): check its permissions") from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive of regular files and folders into ``folder``.

    Raises:
        DataError: The archive is damaged, or a member is of another kind or would be written outside ``folder``.
    """
    inside = folder.resolve()
    safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                plain = member.isreg() or member.isdir()
                if not plain or not (inside / member.name).resolve().is_relative_to(inside):
                    raise DataError(f"{archive} was not unpacked: {member.name} is unsafe; do not trust this archive")
            tar.extractall(inside, **safely)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} was not unpacked: {error}") from error


def download(fetch: Callable[[Path], None], root: Path, folder: Path, names: Iterable[str]) -> None:
    """Let ``fetch`` fill a temporary folder in ``root``, then move ``folder`` into place: all or nothing.

    Raises:
        DataError: The server, a checksum or the disk failed; the message gives the reason, not the remedy.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none: a silent server would block for ever
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            fetch(Path(temporary))
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary) / folder.relative_to(root), folder)
    except Exception as error:  # of many types: sockets, HTTP, checksums, archives, full or read-only disks
        if not find(folder, names):  # else another process has downloaded it meanwhile
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"the download to {folder} failed ({reason})") from error
    finally:
        socket.setdefaulttimeout(timeout)
