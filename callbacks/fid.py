"""Fréchet distance and its kin between a model's samples and real images."""

import math
import re
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from callbacks._first_batch import FirstBatch
from callbacks._reference import FeatureCollector, reference_statistics
from lit_generative.features import load_extractor, shipped
from lit_generative.images import to_uint8
from lit_generative.metrics import Gaussian, density_coverage, frechet_distance, kernel_distance, precision_recall
from lit_generative.protocols import Samples, require
from lit_generative.randomness import forked_rng
from lit_generative.statistics import cache_folder, read_statistics

DENSITY_K = 5  # neighbours, of density and coverage; precision and recall take 3


class FID(FirstBatch):
    """Log ``fid_<extractor>`` in validation, and in test also KID, precision, recall, density and coverage.

    The same noise every time, split over the ranks: the numbers do not depend on how many there are. Real statistics
    are those of the whole split, 8-bit, in the model's image size, without augmentation; they are computed once and
    kept on disk.

    Args:
        extractor: ``inception`` (plain FID: torch-fidelity's network), one that comes with the package
            (``lenet_mnist``, ``lenet_fashion_mnist``), ``auto`` (the data set's own of these, else ``inception``), or
            a module from uint8 images ``(B, C, H, W)`` to features ``(B, d)``.
        weights_path: Weights of ``inception``; default: downloaded.
        num_samples: Samples drawn; 10,000 for a quick look, 50,000 for a paper. Small sets are biased upwards.
        every_n_epochs: In validation.
        reference: Split of the real images, or the path of an .npz with ``mu`` and ``sigma`` as pytorch-fid writes.
        neighbours: Samples and images, at most, that KID and the neighbourhood metrics look at in test; 0: none.
        batch_size: Images sampled and looked at at a time.
        cache_dir: Where statistics are kept; default ``~/.cache/lit-generative``.
        seed: Of the noise.

    Raises:
        TypeError: The model cannot sample, or the data cannot give their images.
        ValueError: An option does not fit, or the extractor's weights cannot be had.
    """

    def __init__(
        self,
        extractor: nn.Module | str = "auto",
        weights_path: str | None = None,
        num_samples: int = 10_000,
        every_n_epochs: int = 1,
        reference: Literal["train", "test"] | str = "train",
        neighbours: int = 10_000,
        batch_size: int = 128,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        if num_samples < 2 or min(batch_size, every_n_epochs) < 1 or neighbours < 0:
            raise ValueError(
                "FID: num_samples starts at 2, batch_size and every_n_epochs at 1, neighbours at 0; got "
                f"{num_samples}, {batch_size}, {every_n_epochs}, {neighbours}"
            )
        self.extractor, self.weights_path, self.num_samples = extractor, weights_path, num_samples
        self.every_n_epochs, self.reference, self.neighbours = every_n_epochs, reference, neighbours
        self.batch_size, self.seed = batch_size, seed
        self.cache = Path(cache_dir).expanduser() if cache_dir else cache_folder()
        self._real: Gaussian | None = None  # on rank 0
        self._fake: FeatureCollector | None = None  # while samples wait for the end of the epoch
        self._protocol = ""

    # -- the start of a run: everything that can fail ----------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, Samples, self)
        data: Any = getattr(trainer, "datamodule", None)
        from_file = self.reference not in ("train", "test")
        if not from_file and not (hasattr(data, "stored") and hasattr(data, "convert")):
            raise TypeError(
                f"FID needs a datamodule that gives its images (`stored`, `convert`), but {type(data).__name__} does "
                f"not: give statistics of the real images as reference, an .npz with mu and sigma"
            )
        self.net = self._load(trainer, data)
        self.name = str(getattr(self.net, "name", type(self.net).__name__.lower()))
        shape: Any = getattr(data, "image_shape", None) or pl_module.image_shape
        self.dims = self.net(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1]
        if from_file:
            self._real = read_statistics(Path(self.reference))
            if len(self._real.mean) != self.dims:
                raise ValueError(
                    f"{self.reference} has {len(self._real.mean)} features, but {self.name} gives {self.dims}: "
                    "choose the extractor that the statistics were made with"
                )
        if self.num_samples < self.dims:
            rank_zero_warn(
                f"fid_{self.name}: {self.num_samples} samples are fewer than the {self.dims} features: the distance is "
                "biased upwards; compare it with distances at the same number only, or raise num_samples"
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            chooses = isinstance(callback, ModelCheckpoint) and callback.monitor == f"val/fid_{self.name}"
            if chooses and callback._every_n_epochs != self.every_n_epochs:
                raise ValueError(
                    f"FID is computed every {self.every_n_epochs} epochs, but a checkpoint is chosen by it every "
                    f"{callback._every_n_epochs}: set --checkpoint.every_n_epochs {self.every_n_epochs}"
                )

    def _load(self, trainer: Trainer, data: Any) -> nn.Module:
        """The extractor; where there are several processes, a node's first one downloads what the others read."""
        if isinstance(self.extractor, nn.Module):
            return self.extractor.eval().requires_grad_(False)
        name = self.extractor
        if name == "auto":
            own = "lenet_" + re.sub("(?<=[a-z])(?=[A-Z])", "_", getattr(data, "name", "")).lower()
            name = own if own in shipped() else "inception"
        first = load_extractor(name, self.weights_path) if trainer.local_rank == 0 else None
        trainer.strategy.barrier("extractor")
        return first if first is not None else load_extractor(name, self.weights_path)

    # -- real images -------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.due(trainer):
            self._prepare(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module)

    @property
    def _kept(self) -> int:
        return max(self.neighbours, self.dims)

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.net.to(pl_module.device)
        if not trainer.strategy.broadcast(self._real is not None):
            self._real = reference_statistics(
                trainer, self.net, self.name, self.reference, self.dims, self._kept, self.batch_size, self.cache
            )

    # -- samples -----------------------------------------------------------------------------------

    def look(self, trainer: Trainer, pl_module: Any, batch: Any) -> None:
        keep = self._kept if trainer.testing else self.dims
        self._fake = FeatureCollector(self.net, self.dims, keep, pl_module.device)
        self._broken, drawn, seconds = 0, 0, 0.0
        for i in range(trainer.global_rank, math.ceil(self.num_samples / self.batch_size), trainer.world_size):
            first = i * self.batch_size
            with forked_rng(self.seed + i, pl_module.device):
                start = time.perf_counter()
                x = pl_module.sample(min(self.batch_size, self.num_samples - first))
                self._broken += int((~x.isfinite()).flatten(1).any(1).sum())  # waits for the device
                seconds += time.perf_counter() - start
            self._fake.add(to_uint8(x), first)
            drawn += len(x)
        self._speed = drawn * trainer.world_size / max(seconds, 1e-9)

    # -- numbers -----------------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("val", trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("test", trainer, pl_module)

    def _log(self, stage: str, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fake is None:
            return
        fake, self._fake = self._fake.compute(), None
        broken = int(trainer.strategy.reduce(torch.tensor(self._broken, device=pl_module.device), reduce_op="sum"))
        metrics = {f"fid_{self.name}": math.inf}
        if broken:
            rank_zero_warn(f"{broken} samples hold NaN or infinite values: fid_{self.name} counts as infinite")
        elif trainer.is_global_zero:
            metrics = self._measure(fake, everything=stage == "test")
        if stage == "test":
            metrics["samples_per_second"] = self._speed
        metrics = trainer.strategy.broadcast(metrics)
        # the same everywhere: sync_dist only spares Lightning's warning
        pl_module.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def _measure(self, fake: Gaussian, everything: bool) -> dict[str, float]:
        assert self._real is not None
        metrics = {f"fid_{self.name}": frechet_distance(self._real, fake)}
        source = f"{self._real.n:,} {self.reference} images, 8-bit, not augmented" if self._real.n else self.reference
        self._protocol = f"{fake.n:,} samples, rounded to 8 bits, against {source}; features: {self.name}"
        if preparation := getattr(self.net, "preparation", ""):
            self._protocol += f", {preparation}"
        x, y = fake.rows[: self.neighbours], self._real.rows[: self.neighbours]
        if not everything or min(len(x), len(y)) <= DENSITY_K:
            return metrics
        kid, deviation = kernel_distance(x, y)
        metrics |= {f"kid_{self.name}": kid, f"kid_{self.name}_std": deviation}
        metrics |= dict(zip(("precision", "recall"), precision_recall(x, y, k=3), strict=True))
        metrics |= dict(zip(("density", "coverage"), density_coverage(x, y, k=DENSITY_K), strict=True))
        self._protocol += (
            f"; KID: 100 subsets of {min(1000, len(x), len(y))}; precision, recall (k = 3), density, coverage "
            f"(k = {DENSITY_K}): {len(x):,} samples, {len(y):,} images"
        )
        return metrics

    def describe_test(self) -> str:
        """The protocol of the numbers."""
        return self._protocol
