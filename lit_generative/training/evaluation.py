"""Validation, test and prediction of every model, from what it measures of every image."""

import math
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from lit_generative.likelihoods import bits_per_dim, in_bits
from lit_generative.metrics.aggregation import MomentsByName, Stats
from lit_generative.protocols import HasLatent, HasLogProb, HasOODScores
from lit_generative.utils.rng import batch_rng


class Evaluates(LightningModule):
    """A model that writes `evaluate`; averages, standard errors, units, logs and predictions are the same for all."""

    image_shape: tuple[int, int, int]
    num_levels: int
    given: str = ""  # what the same is conditioned on, in words
    likelihood_kind: str = ""  # what ``nll`` and ``bpd`` of `test` are: exact, or a bound and which; empty: none
    _tested = 0  # images that the last test saw

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._evaluated = MomentsByName()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._evaluated = MomentsByName()  # an interrupted stage may have left some

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        """What is measured of every image ``(B, C, H, W)`` in [0, 1], numbers ``(B,)`` by name; nothing by default.

        Validation and test (``stage`` is ``val`` or ``test``) log the means over all images of all processes, test
        also their standard errors, and with ``nll`` (nats per image) ``bpd``. Draws are seeded, alike in every run.
        """
        return {}

    def summarize(self, stage: str, stats: dict[str, Stats]) -> dict[str, Tensor]:
        """Further numbers of a whole stage, made of ``stats`` of what `evaluate` gave; entries may be taken out."""
        return {}

    def describe_evaluation(self) -> str:
        """How the numbers that `evaluate` gives are computed, beyond what every model says; see `describe_test`."""
        return ""

    def describe_test(self) -> str:
        """The protocol of the numbers that ``test`` logs, in one line; empty if it logs none."""
        if not (self.likelihood_kind or self.describe_evaluation()):
            return ""
        text = f"{self._tested:,} images, ± standard error"
        if self.likelihood_kind:
            text += (
                f"; nats per image over {self.dims} pixels of {self.num_levels} levels; "
                f"nll{', bpd' if in_bits(self.num_levels) else ''}: {self.likelihood_kind}{self.given}"
            )
        return "; ".join(filter(None, (text, self.describe_evaluation())))

    @property
    def dims(self) -> int:
        """Numbers in an image."""
        return math.prod(self.image_shape)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Any, batch_idx: int, stage: str) -> None:
        with batch_rng(self, batch_idx):
            x, c = batch
            values = self.evaluate(x, c, stage)
        if values:
            self._evaluated.update(values)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        stats = self._evaluated.compute(self.device)
        metrics = self.summarize(stage, stats)
        for name, stat in stats.items():
            metrics[name] = stat.mean
            if stage == "test":
                metrics[f"{name}_stderr"], self._tested = stat.stderr, int(stat.images)
        if "nll" in metrics and in_bits(self.num_levels):
            metrics["bpd"] = bits_per_dim(-metrics["nll"], self.dims)
            if stage == "test":
                metrics["bpd_stderr"] = bits_per_dim(-metrics["nll_stderr"], self.dims)
        # summed over processes already: sync_dist only spares Lightning's warning
        self.log_dict({f"{stage}/{name}": value.float() for name, value in metrics.items()}, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """What the model can say of every image: ``z``, ``log_prob`` or else its OOD scores; with its label ``c``."""
        x, c = batch
        found: dict[str, Any] = {}
        with batch_rng(self, batch_idx):
            if isinstance(self, HasLatent):
                found["z"] = self.encode(x)
            if isinstance(self, HasLogProb):
                found["log_prob"] = self.log_prob(x, c)
            elif isinstance(self, HasOODScores):
                found |= self.ood_scores(x)
        return found | {"c": c}
