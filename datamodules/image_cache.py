"""Images decoded once into a file that is mapped into memory: as many as the disk holds, at the speed of memory."""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import realpath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.files import DataError, listed
from datamodules.folders import formats
from lit_generative.errors import UserError
from lit_generative.utils.files import atomic_write

Files = tuple[Path, ...]  # of one image

AT_ONCE = 1024  # images between disk and disk
READER = 2  # changes with what `decode` makes of an image
DARK = 4096  # levels of the 65,536 of 16 bits: an image that uses no others becomes nearly black


def open_image(path: Path, mode: str = "RGB") -> Image.Image:
    """An image of any mode as RGB or L: upright, on white, 8-bit.

    Raises:
        ValueError: It cannot be read; the message is the reason.
    """
    try:
        with Image.open(path, formats=formats()) as opened:
            image = ImageOps.exif_transpose(opened)
            if has_16_bits(opened):  # conversion would clip all but the lowest levels
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise UserError("it has pixels of 32 bits, of unknown range: convert it to 8 or 16")
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return image.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(str(error).replace(f" {str(path)!r}", "")) from error


def has_16_bits(image: Image.Image) -> bool:
    """Whether its levels are 0 to 65,535; of a PGM, whatever its own highest level is, Pillow makes these."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def highest_level(path: Path) -> int | None:
    """The highest level of an image of 16 bits that can be read; None of others."""
    try:
        with Image.open(path, formats=formats()) as image:
            if has_16_bits(image):
                return int(np.asarray(image).max())
            if any(";16" in str(raw) for *_, raw in image.tile):  # of colour, of which Pillow keeps the upper 8
                return 256 * int(np.asarray(image.convert("RGB")).max()) + 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass  # `open_image` says why
    return None


def decode(path: Path, size: int, channels: int) -> np.ndarray:
    """An image of any size and mode as levels ``(channels, size, size)``: scaled, its middle; else as `open_image`."""
    image = open_image(path, "RGB" if channels == 3 else "L")
    levels = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(levels.transpose(2, 0, 1) if channels == 3 else levels[None])


def cached(
    files: Sequence[Files],
    shape: tuple[int, int, int],
    read: Callable[[Files], np.ndarray],
    recipe: str,
    folder: Path,
    skip_broken: bool = False,
) -> tuple[Tensor, list[int]]:
    """All images, uint8 ``(N, *shape)``, mapped from a file in ``folder``, and the indices of those that could be read.

    ``files`` are those of each image. The mapped file is made of them by ``read``, which gives one image or raises
    ValueError, and made anew when one of them comes, goes or changes (size or time). ``recipe`` says what ``read``
    does: each has a file of its own.

    Raises:
        DataError: Images cannot be read, and are not to be skipped; or the file cannot be written.
    """
    files = [tuple(path.absolute() for path in own) for own in files]
    paths = [path for own in files for path in own]
    where = os.path.commonpath([path.parent for path in paths])
    name = f"{Path(where).name}-{_digest(where, recipe, shape)}"
    key = _digest(READER, *((str(path), *_stamp(path)) for path in paths))
    data, facts = folder / f"{name}.npy", folder / f"{name}.json"
    known = _read_facts(facts)
    if known.get("key") != key or not data.is_file() or known.get("bytes") != data.stat().st_size:
        rank_zero_info(f"decoding {len(files):,} images of {where} into {data}, once")
        _tell_of_links(paths, Path(where).resolve())
        broken_now, dark_now = _write(files, shape, read, data)
        known = {"key": key, "bytes": data.stat().st_size, "broken": broken_now, "dark": dark_now}
        _replace(facts, [json.dumps(known).encode()])
    broken = {int(i): reason for i, reason in known["broken"].items()}
    if broken and not skip_broken:
        reasons = listed([f"{_named(files[i])} ({reason})" for i, reason in broken.items()], "; ")
        raise DataError(
            f"{len(broken)} of {len(files)} images cannot be read: {reasons}. Remove or replace them, or set "
            "skip_broken to true"
        )
    if broken:
        named = listed([_named(files[i]) for i in broken])
        rank_zero_info(f"{len(broken):,} images are left out, because they cannot be read: {named}")
    if dark := known["dark"]:
        named = listed([f"{path} (up to {level:,})" for path, level in dark.items()])
        rank_zero_warn(
            f"{len(dark):,} images of 16 bits use few of their 65,536 levels, and become nearly black: {named}; "
            "stretch them first, if they are not meant to be"
        )
    try:
        images = np.load(data, mmap_mode="c")  # private: the file itself is never written to
    except (OSError, ValueError) as error:
        raise DataError(f"{data} is damaged ({error}): delete it: it will be made again") from error
    if images.shape != (len(files), *shape):
        raise DataError(f"{data} holds images {images.shape}, not {(len(files), *shape)}: delete it")
    return torch.from_numpy(images), [i for i in range(len(files)) if i not in broken]


def _tell_of_links(paths: Sequence[Path], folder: Path) -> None:
    """Say which files are links to elsewhere: the user may not know."""
    parents = {parent: parent.resolve() for parent in {path.parent for path in paths}}
    # realpath, since a link may lead to itself
    ends = ((path, Path(realpath(path)) if path.is_symlink() else parents[path.parent] / path.name) for path in paths)
    outside = [(path, end) for path, end in ends if not end.is_relative_to(folder) and end.exists()]
    if outside:
        path, target = outside[0]
        rank_zero_warn(f"{len(outside)} images of {folder} are links to elsewhere, and read: {path} is {target}")


def _named(files: Files) -> str:
    return " with ".join(map(str, files))


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        return (found := path.stat()).st_size, found.st_mtime_ns
    except OSError:  # a link to nowhere, say: `read` gives the reason
        return ()


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, default=list).encode()).hexdigest()[:16]


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # none, or torn: the images are decoded again
        return {}


def _write(
    files: Sequence[Files], shape: tuple[int, int, int], read: Callable[[Files], np.ndarray], target: Path
) -> tuple[dict[int, str], dict[str, int]]:
    """Decode all images into ``target``, zeros for those that cannot be read.

    Returns:
        The reasons of these by index, and of files whose 16 bits are too dark the highest level.
    """
    broken: dict[int, str] = {}
    dark: dict[str, int] = {}

    def attempt(i: int) -> bytes:
        try:
            levels = read(files[i])
        except ValueError as error:
            broken[i] = str(error)
            return bytes(math.prod(shape))
        if levels.max((1, 2)).min() < 2 * DARK >> 8:  # scaling may overshoot; the file itself decides
            tops = ((path, highest_level(path)) for path in files[i])
            dark.update({str(path): top for path, top in tops if top is not None and 0 < top < DARK})
        return levels.tobytes()

    def content() -> Iterator[bytes]:
        header = io.BytesIO()
        layout = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
        np.lib.format.write_array_header_1_0(header, layout)
        yield header.getvalue()
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(files), AT_ONCE):
                yield from pool.map(attempt, range(start, min(start + AT_ONCE, len(files))))

    _replace(target, content())
    return dict(sorted(broken.items())), dict(sorted(dark.items()))


def _replace(target: Path, content: Iterable[bytes]) -> None:
    """Write a file that appears whole or not at all."""
    try:
        with atomic_write(target, shared=True) as file:
            file.writelines(content)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}): choose another cache_dir") from error
