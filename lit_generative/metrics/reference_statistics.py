"""Reference statistics on disk: computed once, found again by everything that they depend on."""

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
    """Where statistics are kept unless another folder is given: ``$XDG_CACHE_HOME/lit-generative``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-generative"


def content_hash(images: Tensor) -> str:
    """A hash of images' shape and levels."""
    digest = hashlib.sha256(f"{images.dtype} {tuple(images.shape)}".encode())
    for chunk in images.split(10_000):
        digest.update(chunk.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """The versions of what features are computed with; ``format`` is to be raised when our own part of it changes."""
    return {"format": "1"} | {name: version(name) for name in ("torch", "torchvision", "torch-fidelity")}


def path_of(key: Mapping[str, Any], folder: Path) -> Path:
    """The file in ``folder`` for statistics that depend on all of ``key``, which JSON can write."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{key.get('data', 'images')}-{key.get('extractor', 'features')}-{digest}.npz"


def save_statistics(path: Path, gaussian: Gaussian, key: Mapping[str, Any]) -> None:
    """Write an .npz that appears whole or not at all; its ``mu`` and ``sigma`` are those of pytorch-fid."""
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
        ValueError: The file is damaged, is no such file, or belongs to another key.
    """
    gaussian, found = _read(path)
    if found != json.loads(json.dumps(key)):
        raise UserError(f"{path} holds statistics of something else")
    return gaussian


def read_reference(path: Path, extractor: str, preparation: str, size: Sequence[int], trust: bool = False) -> Gaussian:
    """Read statistics to measure a distance to: ours, or an .npz with ``mu`` and ``sigma`` as pytorch-fid writes.

    Args:
        path: The file.
        extractor: Name of the features that it must hold, where it says whose they are.
        preparation: What that extractor does to images first, above all how it resizes them; empty: not known.
        size: (C, H, W) of the images.
        trust: Take a file that does not say how its images were prepared. Other resizes give other features: a distance
            between the two is no distance of images (Parmar et al., 2022, arXiv:2104.11222).

    Raises:
        ValueError: The file is damaged, is no such file, holds other features, or does not say which.
    """
    gaussian, found = _read(path)
    remedy = (
        "run a test with FID on those images and reference train once, and give the file that it writes into its "
        "cache_dir"
    )
    if not found:
        if preparation and not trust:
            raise UserError(
                f"{path} does not say how its images were resized; {extractor} takes {preparation}, and pytorch-fid, "
                f"for one, another resize, with which distances would be wrong: {remedy}, or set trust_reference if "
                "you know that the resize was the same"
            )
        return gaussian
    if found.get("extractor") != extractor:
        name = found.get("extractor")
        raise UserError(f"{path} holds features of {name}, not of {extractor}: choose that extractor")
    made = tuple(found.get("size", ())), *found.get("resize", ())[1:]
    if made != (tuple(size), preparation):
        raise UserError(
            f"{path} holds features of images {made}, not {(tuple(size), preparation)}, (C, H, W) and resize: {remedy}"
        )
    return gaussian


def _read(path: Path) -> tuple[Gaussian, dict[str, Any]]:
    """Statistics, and the key they were saved under: empty for a file of pytorch-fid's."""
    if not path.is_file():
        raise UserError(f"there are no statistics at {path}")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        mean, covariance = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
        rows = torch.from_numpy(arrays["rows"]) if "rows" in arrays else torch.empty(0, len(mean))
        count = int(arrays.get("count", 0))
        key = json.loads(str(arrays["key"])) if "key" in arrays else {}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or holds no statistics mu and sigma ({error})") from error
    if covariance.shape != (len(mean), len(mean)) or not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"{path} holds no mean and covariance of features: mu {mean.shape}, sigma {covariance.shape}")
    return Gaussian(count, mean, covariance, rows), key
