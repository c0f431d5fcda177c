"""How time and memory grow: with images, importance samples and samples of the Fréchet distance.

    python benchmarks/growth.py [--threads 1]

Every row is measured in a process of its own, so that its highest memory is known: what the process holds by itself,
and with the pages of files that are mapped, which the system takes back when it needs them. Made-up images of 28x28.
`processes.py` measures how time grows with processes.
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch


class Memory:
    """The highest memory of this process in MiB: its own, and with mapped files; looked at every 10 ms."""

    def __enter__(self):
        self.own = self.all = 0
        self._end = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._look_once()
        self.before = self.own
        self._watch.start()
        return self

    def __exit__(self, *_):
        self._look_once()
        self._end.set()
        self._watch.join()

    def _look(self):
        while not self._end.wait(0.01):
            self._look_once()

    def _look_once(self):
        lines = Path("/proc/self/status").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith("Rss")}
        self.own, self.all = max(self.own, sizes["RssAnon"]), max(self.all, sum(sizes.values()))


def loading(images):
    """An epoch of shuffled batches of 128 out of a mapped file, as `ImageFolder` keeps its images."""
    from datamodules.loader import TensorLoader

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        file = np.lib.format.open_memmap(path, "w+", np.uint8, (images, 1, 28, 28))
        for start in range(0, images, 10_000):
            file[start : start + 10_000] = np.random.default_rng(start).integers(0, 256, (10_000, 1, 28, 28), np.uint8)
        file.flush()
        del file
        mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
        loader = TensorLoader(mapped, torch.zeros(images, dtype=torch.long), 128, shuffle=True, drop_last=True, seed=0)
        with Memory() as memory:
            start = time.perf_counter()
            total = sum(float(x[0, 0, 0, 0]) for x, _ in loader)
            seconds = time.perf_counter() - start
        assert total > 0
    return seconds, memory


def training(k):
    """A step of `iwae_mnist`'s network with batches of 128."""
    from lit_generative.models import IWAE

    model = IWAE(k=k)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    x = (torch.rand(128, 1, 28, 28) < 0.13).float()
    seconds = []
    with Memory() as memory:
        for _ in range(3):
            start = time.perf_counter()
            optimizer.zero_grad()
            model.objective(x)["loss"].mean().backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
    return min(seconds), memory


def evaluating(k):
    """log p(x) of 128 images from ``k`` importance samples, by the same network."""
    from lit_generative.models import IWAE

    model, x = IWAE(), (torch.rand(128, 1, 28, 28) < 0.13).float()
    with Memory() as memory, torch.no_grad():
        start = time.perf_counter()
        model.log_prob(x, k=k)
        seconds = time.perf_counter() - start
    return seconds, memory


def distance(samples):
    """Samples of a small VAE, their features, and the Fréchet distance of their two halves."""
    from lit_generative.images import to_uint8
    from lit_generative.metrics.feature_extractors import load_extractor
    from lit_generative.metrics.frechet import Features, frechet_distance
    from lit_generative.models import VAE

    model, net = VAE(), load_extractor("lenet_fashion_mnist")
    dims = net(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).shape[1]
    halves = Features(dims, 10_000), Features(dims, 10_000)
    with Memory() as memory, torch.no_grad():
        start = time.perf_counter()
        for i in range(0, samples, 128):
            x = to_uint8(model.sample(min(128, samples - i)))
            halves[i // 128 % 2].update(net(x), i // 2 + torch.arange(len(x)))
        frechet_distance(*(half.compute() for half in halves))
        seconds = time.perf_counter() - start
    return seconds, memory


TABLES = {
    loading: (10_000, 100_000, 1_000_000),
    training: (5, 50, 500),
    evaluating: (50, 500, 5_000),
    distance: (10_000, 50_000, 200_000),
}


def measure(act, size, threads, results):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    seconds, memory = act(size)
    results.put((seconds, memory.before, memory.own, memory.all))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    spawn = multiprocessing.get_context("spawn")
    print(f"{threads} thread(s), torch {torch.__version__}; memory in MiB")
    print("| | | seconds | own memory before | at most | with mapped files |\n|---|---:|---:|---:|---:|---:|")
    for act, sizes in TABLES.items():
        for size in sizes:
            results = spawn.Queue()
            process = spawn.Process(target=measure, args=(act, size, threads, results))
            process.start()
            seconds, before, own, everything = results.get()
            process.join()
            print(f"| {act.__name__} | {size:,} | {seconds:.3g} | {before:,} | {own:,} | {everything:,} |", flush=True)


if __name__ == "__main__":
    main()
