"""Images per second: torchvision's data set, transform and DataLoader against ours, floats included.

The two are measured in turns, so that other work on the machine hits both; the ratio is the median of rounds.

    python benchmarks/data.py [--data-dir DIR] [--rounds 7]
"""

import argparse
import statistics
import tempfile
import time
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.transforms import Compose, RandomHorizontalFlip, ToTensor

from datamodules import FashionMNIST
from datamodules.files import read_bytes
from datamodules.loader import TensorLoader
from lit_generative.images import from_uint8

BATCH = 128


class Colour(Dataset):
    """What torchvision.datasets.CIFAR10 does with each image, on images made up here."""

    def __init__(self, images, labels):
        self.data = images.permute(0, 2, 3, 1).numpy()
        self.targets = labels.tolist()
        self.transform = Compose([RandomHorizontalFlip(), ToTensor()])

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def images_per_second(loader, batches, convert):
    """Throughput of the first batches, the start of each epoch included."""
    count = 0
    start = time.perf_counter()
    for x, _ in islice(loader, batches):
        count += len(convert(x))
    return count / (time.perf_counter() - start)


def compare(name, theirs, ours, rounds):
    rates = []
    for _ in range(rounds):
        slow = images_per_second(theirs, 30, lambda x: x)
        epochs = chain.from_iterable(repeat(ours, 5))
        rates.append((slow, images_per_second(epochs, 5 * len(ours), from_uint8)))
    slow, fast = (statistics.median(rate) for rate in zip(*rates, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in rates)
    print(f"{name:34} {slow:14,.0f} {fast:14,.0f} {ratio:8.0f}x")


def torchvision_folder(data, folder):
    """Unpack the files that our data module uses to where torchvision looks for them."""
    raw = Path(folder) / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "test"):
        for path in data._locate(split):
            (raw / path.name.removesuffix(".gz")).write_bytes(read_bytes(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="holds FashionMNIST/raw; default: the bundled subset")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as torchvision's path uses; and threads that wait for a busy core measure that core

    with tempfile.TemporaryDirectory() as folder:
        empty = str(Path(folder) / "empty")
        grey = FashionMNIST(arguments.data_dir or empty, batch_size=BATCH, val_size=0, download=False, bundled=True)
        torchvision_folder(grey, folder)
        their_grey = datasets.FashionMNIST(folder, transform=ToTensor())
        grey.setup("fit")

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (20_000,), generator=generator)
    options = {"shuffle": True, "drop_last": True, "seed": 0}
    flips = TensorLoader(images, labels, BATCH, random_flip=True, **options)
    dynamic = TensorLoader(*grey._sets["train"], BATCH, binarize=True, **options)

    their_loader = DataLoader(their_grey, BATCH, shuffle=True)
    print(f"{'images per second, batches of 128':34} {'torchvision':>14} {'ours':>14} {'ratio':>9}")
    compare("28x28, Fashion-MNIST", their_loader, grey.train_dataloader(), arguments.rounds)
    compare("28x28, ours drawn anew (dynamic)", their_loader, dynamic, arguments.rounds)
    their_flips = DataLoader(Colour(images, labels), BATCH, shuffle=True)
    compare("32x32x3 with flips", their_flips, flips, arguments.rounds)


if __name__ == "__main__":
    main()
