"""What callbacks that compare images by features share: extractor, real images, metrics, protocol."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from callbacks.base import EvaluationCallback
from callbacks.evaluation._reference import FeatureCollector, extractor_of, reference_statistics
from lit_generative.errors import UserError
from lit_generative.metrics.frechet import Gaussian
from lit_generative.metrics.reference_statistics import cache_folder, read_reference
from lit_generative.metrics.two_sample import (
    DensityCoverage,
    FrechetDistance,
    KernelDistance,
    PrecisionRecall,
    TwoSampleMetric,
)
from lit_generative.protocols import HasImages, require, require_data


class FeatureMetrics(EvaluationCallback):
    """Compare images that a model makes with real ones; a subclass says which, in `evaluate`.

    Real statistics are those of the whole split, 8-bit, in the model's image size, without augmentation; they are
    computed once and kept on disk.

    Args:
        extractor: ``inception`` (plain FID: torch-fidelity's network), one that comes with the package
            (``lenet_mnist``, ``lenet_fashion_mnist``), ``auto`` (the data set's own of these, else ``inception``), or
            a module from uint8 images ``(B, C, H, W)`` to features ``(B, d)``.
        weights_path: Weights of ``inception``; default: downloaded.
        every_n_epochs: In validation; 0: in test only.
        reference: Split of the real images, or the path of an .npz with ``mu`` and ``sigma`` as pytorch-fid writes.
        neighbours: Vectors of either side, at most, for metrics beyond the Fréchet distance; 0: none of these.
        batch_size: Images looked at together; a model's noise depends on it.
        cache_dir: Where statistics are kept; default ``~/.cache/lit-generative``.
        strict: Without it, a model that cannot do this and an extractor that cannot be had are left out with one line.
        seed: Seed of the noise.
        trust_reference: Take an .npz that does not say how its images were resized.
        metrics: Further metrics of the same features.

    Raises:
        TypeError: The model cannot make such images, or the data cannot give theirs.
        ValueError: An option does not fit, the extractor's weights cannot be had, or a reference has other features.
    """

    protocol: ClassVar[Any]  # the class of what a model must be able to do
    subject: ClassVar[str] = ""  # of the images, a part of the metrics' names
    noun: ClassVar[str]  # the images in words

    def __init__(
        self,
        extractor: nn.Module | str = "auto",
        weights_path: str | None = None,
        every_n_epochs: int = 1,
        reference: Literal["train", "test"] | str = "train",
        neighbours: int = 10_000,
        batch_size: int = 128,
        cache_dir: str | None = None,
        strict: bool = True,
        seed: int = 0,
        trust_reference: bool = False,
        metrics: Sequence[TwoSampleMetric] = (),
    ) -> None:
        if batch_size < 1 or min(every_n_epochs, neighbours) < 0:
            raise UserError(
                f"{type(self).__name__}: batch_size must be >= 1, every_n_epochs and neighbours >= 0; got "
                f"{batch_size}, {every_n_epochs}, {neighbours}"
            )
        self.extractor, self.weights_path, self.every_n_epochs = extractor, weights_path, every_n_epochs
        self.reference, self.neighbours, self.batch_size = reference, neighbours, batch_size
        self.strict, self.seed, self.trust_reference = strict, seed, trust_reference
        self.cache = Path(cache_dir).expanduser() if cache_dir else cache_folder()
        self.metrics = (FrechetDistance(), KernelDistance(), PrecisionRecall(), DensityCoverage(), *metrics)
        self._reset()

    def _reset(self) -> None:
        self._real: Gaussian | None = None  # on rank 0
        self._fake: FeatureCollector | None = None  # while images wait for the end of the epoch
        self._broken = 0  # images with NaN or infinite values
        self._protocol, self.logged = "", ()
        self.reported: dict[str, str] = {}
        self.net: nn.Module | None = None  # None: there is nothing to do

    # -- the start of a run: everything that can fail ----------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._reset()
        if stage == "predict":
            return
        data: Any = getattr(trainer, "datamodule", None)
        known = self.reference in ("train", "test")
        try:
            require(pl_module, self.protocol, self)
            if known:
                remedy = "give statistics of the real images as reference, an .npz with mu and sigma"
                require_data(data, HasImages, self, remedy)
            net = extractor_of(trainer, data, self.extractor, self.weights_path)
        except UserError as error:
            if self.strict:
                raise
            rank_zero_info(f"no Fréchet distance: {error}")
            return
        self.name = str(getattr(net, "name", type(net).__name__.lower()))
        self.metric = f"{self.subject}{self.name}"
        same = [c for c in trainer.callbacks if type(c) is type(self) and c.net is not None]  # type: ignore[attr-defined]
        if any(c.name == self.name for c in same):
            raise UserError(f"two {type(self).__name__} callbacks have the extractor {self.name}: leave one out")
        self._first = not same and not self.subject  # the one whose precision, recall, ... are logged
        reported = {name: form for metric in self.metrics for name, form in metric.reported.items() if self._logs(name)}
        self.reported = {name.format(self.metric): form for name, form in reported.items()}
        in_validation = [name for metric in self.metrics if metric.in_validation for name in metric.reported]
        self.logged = tuple(name.format(self.metric) for name in in_validation if self._logs(name))
        self.net = net
        shape: Any = getattr(data, "image_shape", None) or pl_module.image_shape
        self.dims = net.cpu()(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1]
        if not known:
            preparation, path = getattr(net, "preparation", ""), Path(self.reference).expanduser()
            self._real = read_reference(path, self.name, preparation, shape, self.trust_reference)
            if len(self._real.mean) != self.dims:
                raise UserError(
                    f"{self.reference} has {len(self._real.mean)} features, but {self.name} gives {self.dims}: "
                    "choose the extractor that the statistics were made with"
                )
        if stage == "fit":
            for name in self.logged:
                self.require_choosable(trainer, f"val/{name}", of_test_images=self.reference == "test")

    def _logs(self, name: str) -> bool:
        """Whether this callback logs a number of that name: of several extractors one has those without ``{}``."""
        return "{}" in name or self._first

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.net is not None:
            self.net.cpu()
        self.net = None  # the next stage's `setup` must not take it for another callback's

    # -- features ----------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.net is not None and self.due(trainer):
            self._prepare(trainer, pl_module, self.net)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.net is not None:
            self._prepare(trainer, pl_module, self.net)

    def _prepare(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module) -> None:
        net.to(pl_module.device)
        if not trainer.strategy.broadcast(self._real is not None):
            keep = max(self.neighbours, self.dims)
            self._real = reference_statistics(
                trainer, net, self.name, self.reference, self.dims, keep, self.batch_size, self.cache
            )

    def collector(self, trainer: Trainer, pl_module: LightningModule) -> FeatureCollector:
        """What takes the images of one evaluation."""
        assert self.net is not None
        keep = max(self.neighbours, self.dims) if trainer.testing else self.dims
        return FeatureCollector(self.net, self.dims, keep, pl_module.device)

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
        metrics = {f"fid_{self.metric}": math.inf}
        if broken:
            rank_zero_warn(f"{broken} {self.noun} hold NaN or infinite values: fid_{self.metric} counts as infinite")
        elif trainer.is_global_zero:
            metrics = self._measure(fake, everything=stage == "test")
        if trainer.is_global_zero:
            self._describe(fake, everything=stage == "test")
        metrics = trainer.strategy.broadcast(metrics) | self.further_numbers(stage)
        # the same everywhere: sync_dist only spares Lightning's warning
        pl_module.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def further_numbers(self, stage: str) -> dict[str, float]:
        """What a subclass logs beside its metrics."""
        return {}

    def _computed(self, m: int, n: int, everything: bool) -> list[TwoSampleMetric]:
        """The metrics that can be computed from ``m`` and ``n`` vectors."""
        wanted = [metric for metric in self.metrics if everything or metric.in_validation]
        return [metric for metric in wanted if any(map(self._logs, metric.reported)) and min(m, n) >= metric.vectors]

    def _measure(self, fake: Gaussian, everything: bool) -> dict[str, float]:
        assert self._real is not None
        x, y = fake.rows[: self.neighbours], self._real.rows[: self.neighbours]
        metrics: dict[str, float] = {}
        for metric in self._computed(len(x), len(y), everything):
            found = metric.measure(fake, self._real, x, y)
            metrics |= {name.format(self.metric): value for name, value in found.items() if self._logs(name)}
        return metrics

    def _describe(self, fake: Gaussian, everything: bool) -> None:
        assert self._real is not None
        known, real = self.reference in ("train", "test"), self._real
        source = (
            f"{real.n:,} {self.reference} images, 8-bit, not augmented" if known else f"statistics {self.reference}"
        )
        source += ", of a resize taken on trust" if self.trust_reference and not known else ""
        parts = [f"fid_{self.metric}: {fake.n:,} {self.noun}, rounded to 8 bits, against {source}"]
        parts += [", ".join(filter(None, (f"features: {self.name}", getattr(self.net, "preparation", ""))))]
        if fake.n < self.dims:
            parts[-1] += f", more ({self.dims}) than {self.noun}: biased upwards"
        parts += self.origin()
        if not everything and not self._protocol:
            rank_zero_info("; ".join(parts))
        if everything:
            m, n = min(len(fake.rows), self.neighbours), min(len(real.rows), self.neighbours)
            computed = self._computed(m, n, everything)
            parts += [text for metric in computed if (text := metric.describe(m, n))]
            left = [name for metric in self.metrics if metric not in computed for name in metric.reported]
            if missing := [name.format(self.metric) for name in left if self._logs(name)]:
                parts += [f"no {', '.join(missing)}: these need more than {m:,} and {n:,} feature vectors"]
        self._protocol = "; ".join(parts)

    def origin(self) -> list[str]:
        """What the images were made from, for the protocol."""
        return []

    def describe_test(self) -> str:
        """The protocol of the numbers."""
        return self._protocol
