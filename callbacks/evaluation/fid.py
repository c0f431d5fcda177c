"""Fréchet distance and other metrics between a model's samples and real images."""

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from callbacks.base import datamodule_of
from callbacks.evaluation._feature_metrics import FeatureMetrics
from lit_generative.errors import require_at_least
from lit_generative.images import to_uint8
from lit_generative.protocols import Samples
from lit_generative.sampling import Conditions
from lit_generative.utils.rng import forked_rng, mixed_seed, stage_seed
from lit_generative.utils.tasks import tracked


class FID(FeatureMetrics):
    """Log ``fid_<extractor>`` in validation, and in test also KID, precision, recall, density and coverage.

    Every validation draws the same noise, and the test another: a checkpoint is not tested on the noise that it was
    chosen by. The noise is split over the ranks: the numbers do not depend on how many there are. A class-conditional
    model is sampled with labels, see `Conditions`.

    Args:
        num_samples: Samples drawn; 10,000 for a quick estimate, 50,000 for a paper. Few bias the distance upwards.
        guidance: Guidance of a class-conditional model's samples towards their labels, passed to its ``sample``.
        extractor: ``inception`` (plain FID: torch-fidelity's network), one that comes with the package
            (``lenet_mnist``, ``lenet_fashion_mnist``), ``auto`` (that of the data set, else ``inception``), or
            a module from uint8 images ``(B, C, H, W)`` to features ``(B, d)``.
        rest: Arguments of `FeatureMetrics`.
    """

    protocol = Samples
    noun = "samples"

    def __init__(
        self,
        extractor: nn.Module | str = "auto",
        num_samples: int = 10_000,
        guidance: float = 0.0,
        **rest: Any,
    ) -> None:
        super().__init__(extractor, **rest)
        require_at_least(self, 2, num_samples=num_samples)
        self.num_samples, self.guidance = num_samples, guidance

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.net is None:
            return
        if self.num_samples < self.dims:
            rank_zero_warn(
                f"fid_{self.name}: {self.num_samples} samples are fewer than the {self.dims} features: the distance is "
                "biased upwards; compare it only with distances of as many samples, or raise num_samples"
            )
        self.conditions = Conditions(self, pl_module, datamodule_of(trainer), self.guidance)
        if self._first:
            self.reported = {"samples_per_second": ",.3g"} | self.reported

    def evaluate(self, trainer: Trainer, pl_module: Any, batch: Any) -> None:
        if self.net is None:
            return
        self._fake, self._broken = self.collector(trainer, pl_module), 0
        drawn, seconds = 0, 0.0
        seed = stage_seed(self.seed, trainer.validating)
        mine = range(trainer.global_rank, math.ceil(self.num_samples / self.batch_size), trainer.world_size)
        for i in tracked(mine, f"fid_{self.name}: {self.num_samples:,} samples"):
            first = i * self.batch_size
            with forked_rng(mixed_seed(seed, i), pl_module.device):
                start = time.perf_counter()
                x = self.conditions.draw(pl_module, min(self.batch_size, self.num_samples - first))
                self._broken += int((~x.isfinite()).flatten(1).any(1).sum())  # waits for the device
                seconds += time.perf_counter() - start
            self._fake.add(to_uint8(x), first)
            drawn += len(x)
        self._speed = drawn * trainer.world_size / max(seconds, 1e-9)

    def further_numbers(self, stage: str) -> dict[str, float]:
        return {"samples_per_second": self._speed} if stage == "test" and self._first else {}

    def origin(self) -> list[str]:
        noise = f"noise: seed {self.seed}, another in validation than in test, {self.batch_size} at a time"
        return [text for text in (self.conditions.describe(), noise) if text]
