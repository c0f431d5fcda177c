"""A cache of reference statistics on disk, whose key is everything that they depend on."""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.metrics.frechet import Gaussian
from lit_generative.utils.files import atomic_write


def cache_folder() -> Path:
    """The default folder of the cache: ``$XDG_CACHE_HOME/lit-generative``, or ``~/.cache/lit-generative``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-generative"


def content_hash(images: Tensor) -> str:
    """A hash of the type, shape and levels of images."""
    digest = hashlib.sha256(f"{images.dtype} {tuple(images.shape)}".encode())
    for chunk in images.split(10_000):
        digest.update(chunk.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute features, and of our own code as ``format``."""
    return {"format": "1"} | {name: version(name) for name in ("torch", "torchvision", "torch-fidelity")}


def path_of(key: Mapping[str, Any], folder: Path) -> Path:
    """The file in ``folder`` for statistics that depend on all of ``key``, which JSON can write."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{key.get('data', 'images')}-{key.get('extractor', 'features')}-{digest}.npz"


def save_statistics(path: Path, gaussian: Gaussian, key: Mapping[str, Any]) -> None:
    """Write an .npz atomically, with ``mu`` and ``sigma`` as in files of pytorch-fid."""
    with atomic_write(path, shared=True) as file:
        np.savez(
            file,
            mu=gaussian.mean.numpy(),
            sigma=gaussian.covariance.numpy(),
            count=gaussian.n,
            rows=gaussian.rows.numpy(),
            key=json.dumps(key, sort_keys=True),
        )


def read_statistics(path: Path, key: Mapping[str, Any]) -> Gaussian:
    """Read our statistics, which must have been saved under ``key``.

    Raises:
        ValueError: The file is missing, damaged, or of another key.
    """
    gaussian, found = _read(path)
    if found != json.loads(json.dumps(key)):
        raise UserError(f"{path} has statistics of another key")
    return gaussian


def read_reference(path: Path, extractor: str, preparation: str, size: Sequence[int], trust: bool = False) -> Gaussian:
    """Read statistics to measure a distance to: ours, or an .npz with ``mu`` and ``sigma`` as pytorch-fid writes.

    Args:
        path: The file.
        extractor: Name of the extractor that it must be of, if it says so.
        preparation: How that extractor prepares images, above all how it resizes them; empty: not known.
        size: (C, H, W) of the images.
        trust: Accept a file that does not say how its images were prepared. Another resize gives other features, and
            a distance between the two is meaningless (Parmar et al., 2022, arXiv:2104.11222).

    Raises:
        ValueError: The file is missing or damaged, has other features, or does not say how images were prepared.
    """
    gaussian, found = _read(path)
    remedy = "run a test with FID and reference train on those images, and give the file that it writes to cache_dir"
    if not found:
        if preparation and not trust:
            raise UserError(
                f"{path} does not say how its images were resized; {extractor} takes {preparation}, and pytorch-fid, "
                f"for one, uses another resize, which would make distances wrong: {remedy}, or set trust_reference if "
                "the resize is known to be the same"
            )
        return gaussian
    if found.get("extractor") != extractor:
        name = found.get("extractor")
        raise UserError(f"{path} has features of {name}, not of {extractor}: choose that extractor")
    made = tuple(found.get("size", ())), *found.get("resize", ())[1:]
    if made != (tuple(size), preparation):
        raise UserError(
            f"{path} has features of images {made}, not {(tuple(size), preparation)}, (C, H, W) and resize: {remedy}"
        )
    return gaussian


def _read(path: Path) -> tuple[Gaussian, dict[str, Any]]:
    """Statistics and their key, which is empty in files of pytorch-fid."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: give an .npz with mu and sigma")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        mean, covariance = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
        rows = torch.from_numpy(arrays["rows"]) if "rows" in arrays else torch.empty(0, len(mean))
        count = int(arrays.get("count", 0))
        key = json.loads(str(arrays["key"])) if "key" in arrays else {}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged, or not an .npz with mu and sigma ({error})") from error
    if covariance.shape != (len(mean), len(mean)) or not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(
            f"{path}: mu and sigma must be a finite mean (d,) and covariance (d, d), got {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}"
        )
    return Gaussian(count, mean, covariance, rows), key
