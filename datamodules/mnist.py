"""MNIST and its drop-in successors: 28x28 grey images in IDX files.

LeCun et al. 1998, "Gradient-based learning applied to document recognition"; Xiao et al. 2017,
"Fashion-MNIST"; Clanuwat et al. 2018, "Deep learning for classical Japanese literature" (KMNIST).
"""

import hashlib
import math
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from datamodules.base import Split
from datamodules.downloaded import DownloadedImages
from datamodules.files import DataError, read_bytes

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package dataset-fashion-mnist

# The three data sets share file names and shapes; the MD5 of the labels reveals one in the wrong folder
KNOWN_LABELS = {
    "e86ee40d66677c011a9abda399ec8c4d": ("MNIST", "train"),
    "073c3904dfbd3e141ff8aa01cfde6b15": ("MNIST", "test"),
    "3236f6424fc25388b2834cb19942cf7e": ("FashionMNIST", "train"),
    "8dea97a4e78c1bd1b5a6e8efbb870b6e": ("FashionMNIST", "test"),
    "805867f9bd88dc8cfd337f7761dc7dac": ("KMNIST", "test"),
}


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of bytes: 00 00 08 <dimensions>, each size as big-endian uint32, then the values.

    Raises:
        DataError: It is unreadable, of another kind, or its length does not match its header.
    """
    content, remedy = read_bytes(path), "delete it and get it again"
    magic, start = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if content[:4] != magic[: len(content)]:
        raise DataError(
            f"{path} must begin with {magic.hex()}, as IDX files of bytes in {dimensions} dimensions do, got "
            f"{content[:4].hex()}: replace it with the right file"
        )
    if len(content) < start:
        raise DataError(f"{path} is truncated in its header: {remedy}")
    sizes = struct.unpack(f">{dimensions}I", content[4:start])
    excess = len(content) - start - math.prod(sizes)
    if excess:
        fault = f"truncated: {-excess} bytes are missing" if excess < 0 else f"{excess} bytes too long"
        raise DataError(f"{path} is {fault}; {remedy}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


class MNIST(DownloadedImages):
    shape = (1, 28, 28)
    files: ClassVar[dict[Split, tuple[str, ...]]] = {
        "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    }

    def folders(self) -> list[Path]:
        return [self.data_dir / self.name / "raw"]

    def fetch(self, root: Path) -> None:
        getattr(datasets, self.name)(root, download=True)

    def read(self, paths: list[Path], split: Split) -> tuple[Tensor, Tensor]:
        images_path, labels_path = paths
        labels = read_idx(labels_path, 1)
        actual = KNOWN_LABELS.get(hashlib.md5(labels.tobytes(), usedforsecurity=False).hexdigest())
        if actual is not None and actual != (self.name, split):
            raise DataError(f"{labels_path} holds the {actual[1]} labels of {actual[0]}: replace it with {self.name}'s")
        if (labels >= self.num_classes).any():
            raise DataError(f"{labels_path}: labels must be < {self.num_classes}, got {labels.max()}: get it again")
        images = read_idx(images_path, 3)
        if images.shape[1:] != self.shape[1:]:
            size = "x".join(map(str, images.shape[1:]))
            raise DataError(f"{images_path}: images must be 28x28, got {size}: replace it with the right file")
        if len(images) != len(labels):
            raise DataError(
                f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels: "
                "use two files of the same split"
            )
        # copied, since these arrays are read-only
        return torch.tensor(images).unsqueeze(1), torch.tensor(labels, dtype=torch.int64)


class FashionMNIST(MNIST):
    bundle = Path(__file__).parent / "assets" / "fashion-mnist"
    bundle_holds = "10,000 training and 2,000 test images"

    def folders(self) -> list[Path]:
        return [*super().folders(), DEBIAN]


class KMNIST(MNIST):
    """Kuzushiji-MNIST. The stage "test" needs the test files only."""
