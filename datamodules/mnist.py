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

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist

# The three sets share file names and shapes: only the MD5 of the labels tells one in the wrong folder.
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
        DataError: it is unreadable, of another kind, or not exactly as long as its header says.
    """
    content, remedy = read_bytes(path), "delete it and get it again"
    magic, start = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if content[:4] != magic[: len(content)]:
        raise DataError(
            f"{path} begins with {content[:4].hex()}, not {magic.hex()}: it is not an IDX file of bytes in "
            f"{dimensions} dimensions; put the right file there"
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
            raise DataError(f"{labels_path} holds the {actual[1]} labels of {actual[0]}: put {self.name}'s there")
        if (labels >= self.num_classes).any():
            raise DataError(f"{labels_path} has a label {labels.max()}, not 0..{self.num_classes - 1}: get it again")
        images = read_idx(images_path, 3)
        if images.shape[1:] != self.shape[1:]:
            size = "x".join(map(str, images.shape[1:]))
            raise DataError(f"{images_path} holds images of {size} pixels, not 28x28: put the right file there")
        if len(images) != len(labels):
            raise DataError(
                f"{images_path} has {len(images)} images, {labels_path} {len(labels)} labels: "
                "put two files of the same split there"
            )
        # a copy: the bytes of a file are read-only, a tensor is not
        return torch.tensor(images).unsqueeze(1), torch.tensor(labels, dtype=torch.int64)


class FashionMNIST(MNIST):
    bundle = Path(__file__).parent / "assets" / "fashion-mnist"
    bundle_holds = "10,000 training and 2,000 test images"

    def folders(self) -> list[Path]:
        return [*super().folders(), DEBIAN]


class KMNIST(MNIST):
    """Its test split alone is enough for stage "test"."""
