"""Features of images, and those of real images, which are cached on disk."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_generative.errors import UserError
from lit_generative.metrics.feature_extractors import exact_float32, extractor_name, fingerprint, load_extractor
from lit_generative.metrics.frechet import Features, Gaussian
from lit_generative.metrics.reference_statistics import (
    content_hash,
    library_versions,
    path_of,
    read_statistics,
    save_statistics,
)
from lit_generative.protocols import HasImages
from lit_generative.utils.rng import forked_rng
from lit_generative.utils.tasks import tracked


class FeatureCollector:
    """The features of indexed images, by ``net`` in exact float32; see `Features`."""

    def __init__(self, net: nn.Module, dims: int, keep: int, device: torch.device) -> None:
        self.net, self.features = net, Features(dims, keep).to(device)
        # a rank without images still takes part in gathering
        self.features.update(torch.empty(0, dims, device=device), torch.empty(0, dtype=torch.long, device=device))

    def add(self, images: Tensor, first: int, step: int = 1) -> None:
        """Add uint8 images ``(B, C, H, W)`` of indices ``first``, ``first + step``, ...."""
        with exact_float32(images.device):
            rows = self.net(images)
        self.features.update(rows, first + step * torch.arange(len(images), device=images.device))

    def compute(self) -> Gaussian:
        """The features of all ranks."""
        return self.features.compute()


def reference_statistics(
    trainer: Trainer, net: nn.Module, name: str, split: str, dims: int, keep: int, batch_size: int, cache: Path
) -> Gaussian | None:
    """Features of all images of a split, 8-bit, in the model's image size: on rank 0, None on others.

    Read from ``cache``, whose key is everything that they depend on; else all ranks compute them together, and rank 0
    writes them.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    images = data.convert(data.stored(split)[0])
    key = {
        "data": data.name,
        "content": content_hash(images),
        "split": split,
        "count": len(images),
        "size": list(images.shape[1:]),
        "extractor": name,
        "weights": fingerprint(net, images[:2]),
        "resize": [data.resize, getattr(net, "preparation", "")],
        "kept": keep,
        "versions": library_versions(),
    }
    path, real = path_of(key, cache), None
    if trainer.is_global_zero and path.exists():
        try:
            real = read_statistics(path, key)
        except UserError as error:
            rank_zero_warn(f"{error}: it is computed again")
    if trainer.strategy.broadcast(real is not None):
        return real
    rank_zero_info(f"fid_{name}: computing features of {len(images):,} {split} images of {key['data']}, once")
    # in a fixed random order, so that the vectors that are kept are a random subset
    batches = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(batch_size)
    device = trainer.strategy.root_device
    collector = FeatureCollector(net, dims, keep, device)
    mine = range(trainer.global_rank, len(batches), trainer.world_size)
    for i in tracked(mine, f"fid_{name}: features of {len(images):,} {split} images"):
        collector.add(images[batches[i]].to(device), i * batch_size)
    real = collector.compute()
    if not trainer.is_global_zero:
        return None
    try:
        save_statistics(path, real, key)
    except OSError as error:
        rank_zero_warn(f"statistics cannot be written to {cache} ({error}): choose another cache_dir")
    return real


def extractor_of(trainer: Trainer, data: Any, extractor: nn.Module | str, weights_path: str | None) -> nn.Module:
    """The extractor; of several processes on a node, the first downloads its weights.

    ``auto`` is that of the data set, if the package has one, else ``inception``.
    """
    if isinstance(extractor, nn.Module):
        return extractor.eval().requires_grad_(False)
    name, net = extractor, None
    if name == "auto":
        name = extractor_name(data.name if isinstance(data, HasImages) else "")
    with forked_rng(0):  # random weights are drawn before those of the file are read
        try:
            if trainer.local_rank == 0:
                net = load_extractor(name, weights_path)
        finally:
            trainer.strategy.barrier("extractor")
        return net or load_extractor(name, weights_path)
