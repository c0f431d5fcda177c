"""Whether a model's samples are copies of its training images."""

import math
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from callbacks.base import datamodule_of
from callbacks.evaluation._reference import FeatureCollector, reference_statistics
from callbacks.evaluation.fid import FID
from lit_generative.errors import require_at_least
from lit_generative.metrics.frechet import Gaussian, frechet_distance
from lit_generative.metrics.memorization import authentic_share, data_copying


class Memorization(FID):
    """Log in test how near samples are to training images, measured by how near test images are.

    ``authentic`` is the share of samples that are no copies (`authentic_share`) and ``data_copying`` C_T
    (`metrics.memorization.data_copying`, negative for copies). ``train_test_gap_<extractor>`` is the Fréchet distance
    to the test images less that to as many training images; it compares distributions, and sees no copies of images
    that are spread over the whole training set. If a sample has NaN or infinite values, there are no numbers.

    All features of both splits are kept in memory and in the cache: 0.5 GB for 60,000 images and ``inception``.

    Args:
        extractor: Features, as of `FID`.
        num_samples: Samples drawn.
        cells: Clusters of training images, in which distances are compared.
        rest: Arguments of `FID`.
    """

    subject: ClassVar[str] = "memorization_"
    numbers: ClassVar = {"authentic": ".3f", "data_copying": ".1f", "train_test_gap_{}": ".2f"}

    def __init__(
        self, extractor: nn.Module | str = "auto", num_samples: int = 5_000, cells: int = 10, **rest: Any
    ) -> None:
        super().__init__(extractor, num_samples, every_n_epochs=0, reference="train", neighbours=0, metrics=(), **rest)
        require_at_least(self, 1, cells=cells)
        self.cells, self.metrics = cells, ()
        self._splits: dict[str, Gaussian | None] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.net is not None:
            self.reported = {name.format(self.name): form for name, form in self.numbers.items()}

    def _prepare(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module) -> None:
        net.to(pl_module.device)
        data: Any = datamodule_of(trainer)
        for split in ("train", "test"):
            keep = len(data.stored(split)[0])
            self._splits[split] = reference_statistics(
                trainer, net, self.name, split, self.dims, keep, self.batch_size, self.cache
            )

    def collector(self, trainer: Trainer, pl_module: LightningModule) -> FeatureCollector:
        assert self.net is not None
        return FeatureCollector(self.net, self.dims, self.num_samples, pl_module.device)

    def worst(self) -> dict[str, float]:
        return dict.fromkeys(self.reported, math.nan)

    def _measure(self, fake: Gaussian, everything: bool) -> dict[str, float]:
        train, test = self._splits["train"], self._splits["test"]
        assert train is not None and test is not None
        of_train, of_test = (Gaussian.of(s.rows[: min(train.n, test.n)]) for s in (train, test))  # in random order
        return {
            "authentic": authentic_share(fake.rows, train.rows),
            "data_copying": data_copying(fake.rows, test.rows, train.rows, self.cells, seed=self.seed),
            f"train_test_gap_{self.name}": frechet_distance(of_test, fake) - frechet_distance(of_train, fake),
        }

    def _describe(self, fake: Gaussian, everything: bool) -> None:
        train, test = self._splits["train"], self._splits["test"]
        assert train is not None and test is not None
        preparation = getattr(self.net, "preparation", "")
        parts = [f"{fake.n:,} samples, rounded to 8 bits, against {train.n:,} train and {test.n:,} test images"]
        parts += [", ".join(filter(None, (f"features: {self.name}", preparation))), *self.origin()]
        parts += [f"C_T in {self.cells} clusters", f"gap: against {min(train.n, test.n):,} images of either split"]
        self._protocol = "; ".join(parts)
