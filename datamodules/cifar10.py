"""CIFAR-10: 32x32 colour images, in the pickles of torchvision's layout.

Krizhevsky 2009, "Learning multiple layers of features from tiny images".
"""

import codecs
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_url

from datamodules.base import Split
from datamodules.downloaded import DownloadedImages
from datamodules.files import DataError, read_bytes, unpack

ORIGINAL = datasets.CIFAR10


def _dtype(kind: str, align: int = 0, copy: int = 0) -> np.dtype:
    return np.dtype(kind, align=bool(align), copy=bool(copy))  # the files have 0 and 1, of which NumPy warns


# All that the pickle of an array needs to call. Pickles can call any function; `_ArrayUnpickler` refuses the rest.
_reconstruct = np.empty(0).__reduce__()[0]
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no array needs")
        return ALLOWED[module, name]


class CIFAR10(DownloadedImages):
    shape = (3, 32, 32)
    val_fraction = 0.1  # the usual 45,000 + 5,000
    files: ClassVar[dict[Split, tuple[str, ...]]] = {
        "train": tuple(name for name, _ in ORIGINAL.train_list),
        "test": tuple(name for name, _ in ORIGINAL.test_list),
    }
    checksums: ClassVar[dict[str, str]] = dict(ORIGINAL.train_list + ORIGINAL.test_list)  # MD5

    def folders(self) -> list[Path]:
        return [self.data_dir / ORIGINAL.base_folder]

    def fetch(self, root: Path) -> None:
        # not by torchvision's class, which would unpickle the files
        download_url(ORIGINAL.url, str(root), filename=ORIGINAL.filename, md5=ORIGINAL.tgz_md5)
        unpack(root / ORIGINAL.filename, root)

    def read(self, paths: list[Path], split: Split) -> tuple[Tensor, Tensor]:
        batches = [self._read_batch(path, name) for path, name in zip(paths, self.files[split], strict=True)]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, *self.shape)
        labels = [label for batch in batches for label in batch["labels"]]
        return torch.from_numpy(images), torch.tensor(labels)

    def _read_batch(self, path: Path, name: str) -> dict[str, Any]:
        content = read_bytes(path)
        checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if checksum != self.checksums[name]:
            raise DataError(f"{path} must have MD5 {self.checksums[name]}, got {checksum}: delete it and get it again")
        try:
            return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise DataError(f"{path} was not read: {error}. Do not trust it: get the original file") from error
