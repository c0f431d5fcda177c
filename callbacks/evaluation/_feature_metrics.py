"""What callbacks that compare images by features share: extractor, real images, metrics, protocol."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from callbacks.base import EvaluationCallback, datamodule_of
from callbacks.evaluation._reference import FeatureCollector, extractor_of, reference_statistics
from lit_generative.errors import UserError, require_at_least
from lit_generative.metrics.frechet import Gaussian
from lit_generative.metrics.reference_statistics import cache_folder, read_reference
from lit_generative.metrics.two_sample import (
    DensityCoverage,
    FrechetDistance,
    KernelDistance,
    PrecisionRecall,
    TwoSampleMetric,
)
from lit_generative.protocols import HasImages, require_data


class FeatureMetrics(EvaluationCallback):
    """Compare images that a model makes, by `evaluate` of a subclass, with real images in a space of features.

    Real statistics are those of the whole split, 8-bit, in the model's image size, without augmentation; they are
    computed once and cached on disk.

    Args:
        extractor: ``inception`` (plain FID: torch-fidelity's network), one that comes with the package
            (``lenet_mnist``, ``lenet_fashion_mnist``), ``auto`` (that of the data set, else ``inception``), or
            a module from uint8 images ``(B, C, H, W)`` to features ``(B, d)``.
        weights_path: Weights of ``inception``; None: downloaded.
        every_n_epochs: Epochs from one evaluation to the next; 0: in test only.
        reference: Split of the real images, or the path of an .npz with ``mu`` and ``sigma`` as pytorch-fid writes.
        neighbours: Vectors of either side, at most, for metrics beyond the Fréchet distance; 0: none of these.
        batch_size: Images in a batch; the noise of samples depends on it.
        cache_dir: Folder of cached statistics; None: ``~/.cache/lit-generative``.
        strict: Whether a model that cannot do this, data without images and a missing extractor are errors; else a
            message says so, and nothing is computed.
        seed: Seed of the noise.
        trust_reference: Accept an .npz that does not say how its images were resized.
        metrics: Further metrics of the same features.

    Raises:
        TypeError: The model cannot make such images, or the data do not offer theirs.
        ValueError: An argument is out of range, the extractor's weights are missing, or a reference has other features.
    """

    subject: ClassVar[str] = ""  # what kind of images, in the metrics' names
    noun: ClassVar[str]  # the same in words

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
        super().__init__(every_n_epochs, seed)
        require_at_least(self, 1, batch_size=batch_size)
        require_at_least(self, 0, neighbours=neighbours)
        self.extractor, self.weights_path, self.reference = extractor, weights_path, reference
        self.neighbours, self.batch_size = neighbours, batch_size
        self.strict, self.trust_reference = strict, trust_reference
        self.cache = Path(cache_dir).expanduser() if cache_dir else cache_folder()
        self.metrics = (FrechetDistance(), KernelDistance(), PrecisionRecall(), DensityCoverage(), *metrics)
        self._reset()

    def _reset(self) -> None:
        self._real: Gaussian | None = None  # on rank 0
        self._fake: FeatureCollector | None = None  # from the first image of an evaluation to its end
        self._broken = 0  # images with NaN or infinite values
        self._protocol, self.logged = "", ()
        self.reported: dict[str, str] = {}
        self.net: nn.Module | None = None  # None: there is nothing to do

    # -- the start of a run: everything that can fail ----------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._reset()
        if stage == "predict":
            return
        data = datamodule_of(trainer)
        known = self.reference in ("train", "test")
        try:
            super().setup(trainer, pl_module, stage)
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
            raise UserError(f"two {type(self).__name__} callbacks have the extractor {self.name}: remove one of them")
        self._first = not same and not self.subject  # whose precision, recall, ... are logged
        reported = {name: form for metric in self.metrics for name, form in metric.reported.items() if self._logs(name)}
        self.reported = {name.format(self.metric): form for name, form in reported.items()}
        in_validation = [name for metric in self.metrics if metric.in_validation for name in metric.reported]
        self.logged = tuple(name.format(self.metric) for name in in_validation if self._logs(name))
        self.net = net
        shape: Any = data.image_shape if isinstance(data, HasImages) else pl_module.image_shape
        self.dims = net.cpu()(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1]
        if not known:
            preparation, path = getattr(net, "preparation", ""), Path(self.reference).expanduser()
            self._real = read_reference(path, self.name, preparation, shape, self.trust_reference)
            if len(self._real.mean) != self.dims:
                raise UserError(
                    f"{self.reference} has {len(self._real.mean)} features, but {self.name} gives {self.dims}: "
                    "choose the extractor that the statistics were computed with"
                )
        if stage == "fit":
            for name in self.logged:
                self.require_monitorable(trainer, f"val/{name}", of_test_images=self.reference == "test")

    def _logs(self, name: str) -> bool:
        """Whether this callback logs a number of that name: those without ``{}`` are logged by the first FID only."""
        return "{}" in name or self._first

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.net is not None:
            self.net.cpu()
        self.net = None  # `setup` of the next stage compares extractors in use

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
        """A collector of the features of one evaluation."""
        assert self.net is not None
        keep = max(self.neighbours, self.dims) if trainer.testing else self.dims
        return FeatureCollector(self.net, self.dims, keep, pl_module.device)

    # -- numbers -----------------------------------------------------------------------------------

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._fake is None:
            return
        fake, self._fake = self._fake.compute(), None
        broken = int(trainer.strategy.reduce(torch.tensor(self._broken, device=pl_module.device), reduce_op="sum"))
        metrics = self.worst()
        if broken:
            infinite = ", ".join(name for name, value in metrics.items() if value == math.inf)
            counts = f"{infinite} counts as infinite" if infinite else f"no {', '.join(metrics)}"
            rank_zero_warn(f"{broken} {self.noun} have NaN or infinite values: {counts}")
        elif trainer.is_global_zero:
            metrics = self._measure(fake, everything=stage == "test")
        if trainer.is_global_zero:
            self._describe(fake, everything=stage == "test")
        self.log_numbers(pl_module, stage, trainer.strategy.broadcast(metrics) | self.further_numbers(stage))

    def worst(self) -> dict[str, float]:
        """The numbers where an image has NaN or infinite values, with all names that may be monitored."""
        return dict.fromkeys(self.logged, math.nan) | {f"fid_{self.metric}": math.inf}

    def further_numbers(self, stage: str) -> dict[str, float]:
        """Numbers of a subclass beside its metrics."""
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
        source += ", of a resize that was taken on trust" if self.trust_reference and not known else ""
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
        """How the images were made, for the protocol."""
        return []

    def describe_test(self) -> str:
        """The protocol of the numbers."""
        return self._protocol
