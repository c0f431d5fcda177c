"""Fréchet distance and its kin between a model's samples and real images."""

import math
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from callbacks.base import EvaluationCallback
from callbacks.evaluation._reference import FeatureCollector, extractor_of, reference_statistics
from lit_generative.errors import UserError, UserTypeError
from lit_generative.images import to_uint8
from lit_generative.metrics.frechet import Gaussian, frechet_distance
from lit_generative.metrics.reference_statistics import cache_folder, read_reference
from lit_generative.metrics.two_sample import density_coverage, kernel_distance, precision_recall
from lit_generative.protocols import Samples, require
from lit_generative.sampling import Conditions
from lit_generative.utils.rng import forked_rng, mixed_seed, stage_seed

DENSITY_K = 5  # neighbours, of density and coverage; precision and recall take 3


class FID(EvaluationCallback):
    """Log ``fid_<extractor>`` in validation, and in test also KID, precision, recall, density and coverage.

    The same noise in every validation, and another in test: what is chosen by this number is not tested on the noise it
    was chosen by. It is split over the ranks: the numbers do not depend on how many there are. A class-conditional
    model is sampled with labels, see `Conditions`. Real statistics are those of the whole split, 8-bit, in the model's
    image size, without augmentation; they are computed once and kept on disk.

    Args:
        extractor: ``inception`` (plain FID: torch-fidelity's network), one that comes with the package
            (``lenet_mnist``, ``lenet_fashion_mnist``), ``auto`` (the data set's own of these, else ``inception``), or
            a module from uint8 images ``(B, C, H, W)`` to features ``(B, d)``.
        weights_path: Weights of ``inception``; default: downloaded.
        num_samples: Samples drawn; 10,000 for a quick look, 50,000 for a paper. Small sets are biased upwards.
        every_n_epochs: In validation; 0: in test only.
        reference: Split of the real images, or the path of an .npz with ``mu`` and ``sigma`` as pytorch-fid writes.
        neighbours: Samples and images, at most, that KID and the neighbourhood metrics look at in test; 0: none.
        batch_size: Images sampled at a time; the noise depends on it.
        cache_dir: Where statistics are kept; default ``~/.cache/lit-generative``.
        strict: Without it, a model that cannot sample and an extractor that cannot be had are left out with one line.
        seed: Of the noise.
        guidance: Of a class-conditional model's samples towards their labels, passed to its ``sample``.
        trust_reference: Take an .npz that does not say how its images were resized.

    Raises:
        TypeError: The model cannot sample, or the data cannot give their images.
        ValueError: An option does not fit, the extractor's weights cannot be had, or a reference has other features.
    """

    protocol: ClassVar[type] = Samples
    subject, noun = "", "samples"  # what of the model is looked at: part of the metrics' names, and in words

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
        strict: bool = True,
        seed: int = 0,
        guidance: float = 0.0,
        trust_reference: bool = False,
    ) -> None:
        if num_samples < 2 or batch_size < 1 or min(every_n_epochs, neighbours) < 0:
            raise UserError(
                "FID: num_samples starts at 2, batch_size at 1, every_n_epochs and neighbours at 0; got "
                f"{num_samples}, {batch_size}, {every_n_epochs}, {neighbours}"
            )
        self.extractor, self.weights_path, self.num_samples = extractor, weights_path, num_samples
        self.every_n_epochs, self.reference, self.neighbours = every_n_epochs, reference, neighbours
        self.batch_size, self.strict, self.seed, self.guidance = batch_size, strict, seed, guidance
        self.trust_reference = trust_reference
        self.cache = Path(cache_dir).expanduser() if cache_dir else cache_folder()
        self._reset()

    def _reset(self) -> None:
        self._real: Gaussian | None = None  # on rank 0
        self._fake: FeatureCollector | None = None  # while samples wait for the end of the epoch
        self._protocol, self.logged = "", ()
        self.net: nn.Module | None = None  # None: there is nothing to do

    # -- the start of a run: everything that can fail ----------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._reset()
        if stage == "predict":
            return
        try:
            require(pl_module, self.protocol, self)
            data: Any = getattr(trainer, "datamodule", None)
            from_file = self.reference not in ("train", "test")
            if not from_file and not (hasattr(data, "stored") and hasattr(data, "convert")):
                raise UserTypeError(
                    f"FID needs a datamodule that gives its images (`stored`, `convert`), but {type(data).__name__} "
                    f"does not: give statistics of the real images as reference, an .npz with mu and sigma"
                )
            net = extractor_of(trainer, data, self.extractor, self.weights_path)
        except UserError as error:
            if self.strict:
                raise
            rank_zero_info(f"no Fréchet distance: {error}")
            return
        self.name = str(getattr(net, "name", type(net).__name__.lower()))
        self.metric = f"{self.subject}{self.name}"
        self.logged = (f"fid_{self.metric}",)
        same = [c for c in trainer.callbacks if type(c) is type(self) and c.net is not None]  # type: ignore[attr-defined]
        if any(c.name == self.name for c in same):
            raise UserError(f"two {type(self).__name__} callbacks have the extractor {self.name}: leave one out")
        self._first = not same and not self.subject  # the one whose precision, recall, ... are logged
        self.net = net
        shape: Any = getattr(data, "image_shape", None) or pl_module.image_shape
        self.dims = net.cpu()(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1]
        if from_file:
            preparation, path = getattr(net, "preparation", ""), Path(self.reference).expanduser()
            self._real = read_reference(path, self.name, preparation, shape, self.trust_reference)
            if len(self._real.mean) != self.dims:
                raise UserError(
                    f"{self.reference} has {len(self._real.mean)} features, but {self.name} gives {self.dims}: "
                    "choose the extractor that the statistics were made with"
                )
        if not self.subject and self.num_samples < self.dims:
            rank_zero_warn(
                f"fid_{self.name}: {self.num_samples} samples are fewer than the {self.dims} features: the distance is "
                "biased upwards; compare it with distances at the same number only, or raise num_samples"
            )
        if not self.subject:
            self.conditions = Conditions(self, pl_module, data, self.guidance)
        if stage == "fit":
            self.require_choosable(trainer, f"val/fid_{self.metric}", of_test_images=self.reference == "test")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.net is not None:
            self.net.cpu()
        self.net = None  # the next stage's `setup` must not take it for another callback's

    # -- real images -------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.net is not None and self.due(trainer):
            self._prepare(trainer, pl_module, self.net)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.net is not None:
            self._prepare(trainer, pl_module, self.net)

    @property
    def _kept(self) -> int:
        return max(self.neighbours, self.dims)

    def _prepare(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module) -> None:
        net.to(pl_module.device)
        if not trainer.strategy.broadcast(self._real is not None):
            self._real = reference_statistics(
                trainer, net, self.name, self.reference, self.dims, self._kept, self.batch_size, self.cache
            )

    # -- samples -----------------------------------------------------------------------------------

    def evaluate(self, trainer: Trainer, pl_module: Any, batch: Any) -> None:
        if self.net is None:
            return
        keep = self._kept if trainer.testing else self.dims
        self._fake = FeatureCollector(self.net, self.dims, keep, pl_module.device)
        self._broken, drawn, seconds = 0, 0, 0.0
        seed = stage_seed(self.seed, trainer.validating)
        for i in range(trainer.global_rank, math.ceil(self.num_samples / self.batch_size), trainer.world_size):
            first = i * self.batch_size
            with forked_rng(mixed_seed(seed, i), pl_module.device):
                start = time.perf_counter()
                x = self.conditions.draw(pl_module, min(self.batch_size, self.num_samples - first))
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
        metrics = {f"fid_{self.metric}": math.inf}
        if broken:
            rank_zero_warn(f"{broken} {self.noun} hold NaN or infinite values: fid_{self.metric} counts as infinite")
        elif trainer.is_global_zero:
            metrics = self._measure(fake, everything=stage == "test")
        if trainer.is_global_zero:
            self._describe(fake, stage == "test")
        if stage == "test" and self._first:
            metrics["samples_per_second"] = self._speed
        metrics = trainer.strategy.broadcast(metrics)
        # the same everywhere: sync_dist only spares Lightning's warning
        pl_module.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def _neighbours(self, gaussian: Gaussian) -> Tensor:
        return gaussian.rows[: self.neighbours]

    def _measure(self, fake: Gaussian, everything: bool) -> dict[str, float]:
        assert self._real is not None
        metrics = {f"fid_{self.metric}": frechet_distance(self._real, fake)}
        x, y = self._neighbours(fake), self._neighbours(self._real)
        if everything and min(len(x), len(y)) > DENSITY_K:
            kid, deviation = kernel_distance(x, y)
            metrics |= {f"kid_{self.metric}": kid, f"kid_{self.metric}_std": deviation}
            if self._first:
                metrics |= dict(zip(("precision", "recall"), precision_recall(x, y, k=3), strict=True))
                metrics |= dict(zip(("density", "coverage"), density_coverage(x, y, k=DENSITY_K), strict=True))
        return metrics

    def _describe(self, fake: Gaussian, everything: bool) -> None:
        assert self._real is not None
        known, real = self.reference in ("train", "test"), self._real
        source = (
            f"{real.n:,} {self.reference} images, 8-bit, not augmented" if known else f"statistics {self.reference}"
        )
        source += ", of a resize taken on trust" if self.trust_reference and not known else ""
        text = f"fid_{self.metric}: {fake.n:,} {self.noun}, rounded to 8 bits, against {source}; features: {self.name}"
        if preparation := getattr(self.net, "preparation", ""):
            text += f", {preparation}"
        if fake.n < self.dims:
            text += f", more ({self.dims}) than {self.noun}: biased upwards"
        text += self._origin()
        x, y = len(self._neighbours(fake)), len(self._neighbours(real))
        if not everything and not self._protocol:
            rank_zero_info(text)
        elif everything and min(x, y) > DENSITY_K:
            text += f"; KID: 100 subsets of {min(1000, x, y)}"
            if self._first:
                text += f"; precision, recall (k = 3), density, coverage (k = {DENSITY_K}): {x:,} samples, {y:,} images"
        elif everything:
            text += "; no KID, precision, recall, density or coverage: these need vectors of both sides"
        self._protocol = text

    def _origin(self) -> str:
        noise = f"noise: seed {self.seed}, another in validation than in test, {self.batch_size} at a time"
        return "".join(f"; {text}" for text in (self.conditions.describe(), noise) if text)

    def describe_test(self) -> str:
        """The protocol of the numbers."""
        return self._protocol
