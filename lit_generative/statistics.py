"""Reference statistics on disk: computed once, found again by everything that they depend on."""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_generative.metrics import Gaussian
from lit_generative.whole_files import whole_file


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
    with whole_file(path, shared=True) as file:
        np.savez(
            file,
            mu=gaussian.mean.numpy(),
            sigma=gaussian.covariance.numpy(),
            count=gaussian.n,
            rows=gaussian.rows.numpy(),
            key=json.dumps(key, sort_keys=True),
        )


def read_statistics(path: Path, key: Mapping[str, Any] | None = None, extractor: str = "") -> Gaussian:
    """Read statistics: ours, which must have been saved under ``key`` if one is given, or those of pytorch-fid.

    ``extractor`` is the name that the features must carry, where the file says it.

    Raises:
        ValueError: The file is torn, is no such file, or belongs to another key.
    """
    if not path.is_file():
        raise ValueError(f"there are no statistics at {path}")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        mean, covariance = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
        rows = torch.from_numpy(arrays["rows"]) if "rows" in arrays else torch.empty(0, len(mean))
        count = int(arrays.get("count", 0))
        found = json.loads(str(arrays["key"])) if key is not None or "key" in arrays else {}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or holds no statistics mu and sigma ({error})") from error
    if covariance.shape != (len(mean), len(mean)) or not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{path} holds no mean and covariance of features: mu {mean.shape}, sigma {covariance.shape}")
    if key is not None and found != json.loads(json.dumps(key)):
        raise ValueError(f"{path} holds statistics of something else")
    if extractor and found.get("extractor", extractor) != extractor:
        raise ValueError(f"{path} holds features of {found['extractor']}, not of {extractor}: choose that extractor")
    return Gaussian(count, mean, covariance, rows)
