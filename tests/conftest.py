import os

os.environ["OMP_NUM_THREADS"] = "1"  # one thread a worker; read when torch is imported

import numpy as np
import pytest
import torch
from data_files import idx

# LightningCLI 2.6 calls jsonargparse by names that the newest releases deprecate; nothing of ours
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_user_cache(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """MNIST, FashionMNIST and KMNIST in torchvision's layout: 96 + 40 made images of bright strokes on black."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        raw = root / name / "raw"
        raw.mkdir(parents=True)
        for split, n in (("train", 96), ("t10k", 40)):
            labels = (np.arange(n) % 10).astype(np.uint8)
            images = np.zeros((n, 28, 28), np.uint8)
            for image, label in zip(images, labels, strict=True):
                image[4:24, 4 + 2 * label : 7 + 2 * label] = rng.integers(128, 256, (20, 3))
            (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(images.tobytes(), n, 28, 28))
            (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels.tobytes(), n))
    return root
