"""Images are decoded once, into a memory-mapped file: data sets may exceed the memory and are read at its speed."""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os.path import realpath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from datamodules.files import DataError, listed
from datamodules.folders import formats
from lit_generative.errors import UserError
from lit_generative.utils.files import atomic_write

Files = tuple[Path, ...]  # the files that one image is made of

CHUNK = 1024  # images decoded before they are written
DECODER_VERSION = 2  # part of the cache's key: raise it when images are decoded differently
DARK = 4096  # a 16-bit image (65,536 levels) whose levels are all below this becomes nearly black


@contextmanager
def opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open an image file; whatever Pillow raises within the block becomes a `UserError` with the reason."""
    try:
        with Image.open(path, formats=formats()) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(str(error).replace(f" {str(path)!r}", "")) from error


def open_image(path: Path, mode: str = "RGB") -> Image.Image:
    """Read an image of any mode as 8-bit RGB or L, upright (EXIF) and with transparency over white.

    Raises:
        UserError: It cannot be read; the message is the reason.
    """
    with opened(path) as file:
        image = ImageOps.exif_transpose(file)
        if has_16_bits(file):  # `Image.convert` would clip all but the lowest levels
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise UserError("32-bit pixels have no known range: convert the image to 8 or 16 bits")
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert(mode)


def has_16_bits(image: Image.Image) -> bool:
    """Whether grey levels are 0 to 65,535; Pillow scales those of a PGM of more than 8 bits to this range."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def highest_level(path: Path) -> int | None:
    """The highest level, 0 to 65,535, of a readable 16-bit image; None for any other file."""
    try:
        with opened(path) as image:
            if has_16_bits(image):
                return int(np.asarray(image).max())
            if any(";16" in str(raw) for *_, raw in image.tile):  # colour, of which Pillow keeps the upper 8 bits
                return 256 * int(np.asarray(image.convert("RGB")).max()) + 255
    except UserError:
        pass  # `open_image` gives the reason
    return None


def decode(path: Path, size: int, channels: int) -> np.ndarray:
    """Read an image of any size and mode as uint8 ``(channels, size, size)``: shorter side scaled, centre cropped."""
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
) -> tuple[Tensor, Tensor]:
    """All images, uint8 ``(N, *shape)``, mapped from a file in ``folder``, and which could be read, bool ``(N,)``.

    ``read`` decodes the ``files`` of one image, or raises ValueError. The mapped file is written on first use, and
    again when a source file is added, removed or changed (size or time). ``recipe`` names what ``read`` does: each
    recipe has its own file.

    Raises:
        DataError: Images cannot be read and ``skip_broken`` is false, or the file cannot be written.
    """
    files = [tuple(path.absolute() for path in own) for own in files]
    paths = [path for own in files for path in own]
    where = os.path.commonpath([path.parent for path in paths])
    name = f"{Path(where).name}-{_digest(where, recipe, shape)}"
    key = _digest(DECODER_VERSION, *((str(path), *_stamp(path)) for path in paths))
    data, facts = folder / f"{name}.npy", folder / f"{name}.json"
    known = _read_facts(facts)
    if known.get("key") != key or not data.is_file() or known.get("bytes") != data.stat().st_size:
        rank_zero_info(f"decoding {len(files):,} images from {where} into {data}, only this once")
        _warn_of_links(paths, Path(where).resolve())
        broken_now, dark_now = _write(files, shape, read, data)
        known = {"key": key, "bytes": data.stat().st_size, "broken": broken_now, "dark": dark_now}
        _replace(facts, [json.dumps(known).encode()])
    broken = {int(i): reason for i, reason in known["broken"].items()}
    if broken and not skip_broken:
        reasons = listed([f"{_named(files[i])} ({reason})" for i, reason in broken.items()], "; ")
        raise DataError(
            f"{len(broken)} of {len(files)} images cannot be read: {reasons}. Remove or replace them, or use "
            "skip_broken=true"
        )
    if broken:
        named = listed([_named(files[i]) for i in broken])
        rank_zero_info(f"{len(broken):,} images are left out because they cannot be read: {named}")
    if dark := known["dark"]:
        named = listed([f"{path} (up to {level:,})" for path, level in dark.items()])
        rank_zero_warn(
            f"{len(dark):,} 16-bit images use few of their 65,536 levels and become nearly black: {named}; "
            "unless that is intended, rescale their levels first"
        )
    try:
        images = np.load(data, mmap_mode="c")  # copy on write: the file itself never changes
    except (OSError, ValueError) as error:
        raise DataError(f"{data} is damaged ({error}): delete it, and it will be made again") from error
    if images.shape != (len(files), *shape):
        raise DataError(f"{data} must hold an array {(len(files), *shape)}, got {images.shape}: delete it")
    return torch.from_numpy(images), torch.tensor([i not in broken for i in range(len(files))])


def _warn_of_links(paths: Sequence[Path], folder: Path) -> None:
    """Warn of files that are links to outside the folder: the user may not know."""
    parents = {parent: parent.resolve() for parent in {path.parent for path in paths}}
    # realpath: a link may lead to itself, for which `resolve` raises an error
    ends = ((path, Path(realpath(path)) if path.is_symlink() else parents[path.parent] / path.name) for path in paths)
    outside = [(path, end) for path, end in ends if not end.is_relative_to(folder) and end.exists()]
    if outside:
        path, target = outside[0]
        rank_zero_warn(f"{len(outside)} images in {folder} are links to files outside it, such as {path} -> {target}")


def _named(files: Files) -> str:
    return " with ".join(map(str, files))


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        return (found := path.stat()).st_size, found.st_mtime_ns
    except OSError:  # such as a broken link: `read` gives the reason
        return ()


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, default=list).encode()).hexdigest()[:16]


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # missing or damaged: the images are decoded again
        return {}


def _write(
    files: Sequence[Files], shape: tuple[int, int, int], read: Callable[[Files], np.ndarray], target: Path
) -> tuple[dict[int, str], dict[str, int]]:
    """Decode all images into ``target``, with zeros for those that cannot be read.

    Returns:
        Why images cannot be read, by index; and the highest level of each 16-bit file that is too dark, by path.
    """
    broken: dict[int, str] = {}
    dark: dict[str, int] = {}

    def attempt(i: int) -> bytes:
        try:
            levels = read(files[i])
        except ValueError as error:
            broken[i] = str(error)
            return bytes(math.prod(shape))
        if levels.max((1, 2)).min() < 2 * DARK >> 8:  # a quick test, as scaling may overshoot; the file itself decides
            tops = ((path, highest_level(path)) for path in files[i])
            dark.update({str(path): top for path, top in tops if top is not None and 0 < top < DARK})
        return levels.tobytes()

    def content() -> Iterator[bytes]:
        header = io.BytesIO()
        layout = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
        np.lib.format.write_array_header_1_0(header, layout)
        yield header.getvalue()
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(files), CHUNK):
                yield from pool.map(attempt, range(start, min(start + CHUNK, len(files))))

    _replace(target, content())
    return dict(sorted(broken.items())), dict(sorted(dark.items()))


def _replace(target: Path, content: Iterable[bytes]) -> None:
    """Write a file atomically."""
    try:
        with atomic_write(target, shared=True) as file:
            file.writelines(content)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}): choose another cache_dir") from error
