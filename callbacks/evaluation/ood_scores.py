"""Detection of out-of-distribution images by a model's likelihood, corrections of it, and scores of its own."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Generator, Tensor

from callbacks._logging import log_image, run_folder
from callbacks._plots import histograms
from callbacks.base import EvaluationCallback, datamodule_of
from callbacks.evaluation._other_sets import other_sets, stored_test_images
from callbacks.evaluation._tables import HOW, OWN, WARNING, score_table, short_table, write_scores
from lit_generative.checkpoints.load import load_model
from lit_generative.errors import UserError, UserTypeError, require_at_least
from lit_generative.images import from_uint8
from lit_generative.metrics import ood
from lit_generative.metrics.aggregation import PerImage
from lit_generative.metrics.density_of_states import add_density_of_states
from lit_generative.metrics.reference_statistics import cache_folder
from lit_generative.protocols import ComparesImages, HasLogProb, HasOODScores, require, require_data
from lit_generative.utils.precision import exact, exact_device, for_weights
from lit_generative.utils.rng import forked_rng, mixed_seed
from lit_generative.utils.tasks import tracked


class OODScores(EvaluationCallback):
    """Score test images and images of other data sets, and log AUROC, AUPR and FPR at 95 % TPR of every set and score.

    The scores, higher for images that look more out of distribution, are those of `metrics.ood`, and those that the
    model offers (`HasOODScores`). All images go through the pipeline of the model's own data. A table, histograms and
    the scores of every image are written to ``ood/`` beside the results of the test.

    Args:
        data: The other data sets, named after their classes; several of one class are numbered. Repetitions and the
            model's own set (the same class, folder and arguments that its images depend on) are left out.
        background: Checkpoint of a background model, for likelihood ratios.
        synthetic: Also score uniform noise, constant images, and the test images flipped and inverted.
        num_images: Images of each set, drawn by the seed.
        headline: The score whose AUROC, averaged over ``data``, is logged as ``ood/auroc_<headline>``; None: input
            complexity, or for a model without likelihood its ``ood_headline``.
        every_n_epochs: Epochs from one evaluation in validation to the next, by which nothing may be chosen; 0: in test
            only.
        batch_size: Images scored at a time; the draws of a stochastic bound depend on it.
        resamples: Bootstrap resamples of the intervals.
        strict: Whether a model without scores and missing data sets are errors; else they are left out with a message.
        seed: Seed of the choice of images, of the model's draws and of the bootstrap.
        cache_dir: Folder of cached code lengths; None: ``~/.cache/lit-generative``.

    Raises:
        TypeError: The model has neither ``log_prob`` nor ``ood_scores``, or the data do not offer their images.
    """

    def __init__(
        self,
        data: list[LightningDataModule],
        background: str | None = None,
        synthetic: bool = True,
        num_images: int = 2000,
        headline: str | None = None,
        every_n_epochs: int = 0,
        batch_size: int = 128,
        resamples: int = 1000,
        strict: bool = True,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs, seed)
        require_at_least(self, 1, num_images=num_images, batch_size=batch_size, resamples=resamples)
        if headline == "ratio" and background is None:
            raise UserError("OODScores: headline ratio needs a background model: give its checkpoint as background")
        self.data, self.background, self.synthetic, self.num_images = data, background, synthetic, num_images
        self.headline, self.batch_size, self.resamples, self.strict = headline, batch_size, resamples, strict
        self.cache = Path(cache_dir).expanduser() if cache_dir else cache_folder()
        self._reset()

    def _reset(self) -> None:
        self._sets: dict[str, Tensor] = {}  # images to score; empty: there is nothing to do
        self._numbers: dict[str, Tensor] = {}  # indices of these images in their files
        self._others: list[str] = []
        self.reported: dict[str, str] = {}
        self._background: Any = None
        self._rows: dict[str, PerImage] = {}

    # -- the start of a run ------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._reset()
        if stage != "test" and not (stage == "fit" and self.every_n_epochs):
            return
        own = datamodule_of(trainer)
        try:
            require(pl_module, HasOODScores if isinstance(pl_module, HasOODScores) else HasLogProb, self)
            for data in (own, *self.data):
                require_data(data, ComparesImages, self)
        except UserTypeError as error:
            if self.strict:
                raise
            rank_zero_info(f"no out-of-distribution scores: {error}")
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if (monitor := str(getattr(callback, "monitor", ""))).startswith("ood/"):
                raise UserError(
                    f"{type(callback).__name__} must not monitor {monitor}, a number of test images: choose another"
                )
        if self.background is not None and not isinstance(pl_module, HasLogProb):
            raise UserError(f"OODScores: {type(pl_module).__name__} has no likelihood for a ratio: remove background")
        own_headline = "complexity" if isinstance(pl_module, HasLogProb) else getattr(pl_module, "ood_headline", "")
        self._headline = self.headline or own_headline
        self._pixels = "x".join(map(str, own.image_shape)) + (
            " binary pixels" if own.num_levels == 2 else " 8-bit pixels"
        )
        # images of other sets have no labels of the model's classes: all are scored without labels
        self._unlabelled = ", of images without labels" if getattr(pl_module, "classes", 0) else ""
        self._kind = (getattr(pl_module, "log_prob_kind", "") or "not known") + self._unlabelled
        if self.background is not None:
            with forked_rng(self.seed):  # random weights are drawn before those of the file are read
                self._background = load_model(self.background)
            require(self._background, HasLogProb, self)
            self._background.require_fitting(own)
        self._add("train", own.stored("train")[0], own)
        self._add("test", own.stored("test")[0], own)
        if len(held_out := own.held_out()) > 1:
            self._choose("held_out", held_out)
        sets = other_sets(own, self.data)
        for name, other in sets.items():
            if (images := stored_test_images(trainer, other, self.strict)) is None:
                continue
            if change := own.describe_conversion(images):
                rank_zero_info(f"out-of-distribution images of {name}: {change}, as in the model's own data")
            self._add(name, images, own)
            self._others.append(name)
        numbered = [f"{name}: {data.data_dir}" for name, data in sets.items() if name != data.name]
        self._folders = f" ({', '.join(numbered)})" if numbered else ""
        if self.synthetic:
            test = own.convert(own.stored("test")[0][self._numbers["test"]])
            for name, images in ood.simple_images(test, self.seed).items():
                self._sets[name], self._numbers[name] = own.as_test(images), self._numbers["test"]

    def _add(self, name: str, images: Tensor, own: Any) -> None:
        """Choose images of a set, and bring them to the form of the model's test images."""
        self._choose(name, own.as_test(images))

    def _choose(self, name: str, images: Tensor) -> None:
        """Choose images of a set by the seed."""
        order = torch.randperm(len(images), generator=Generator().manual_seed(self.seed))
        self._numbers[name] = order[: self.num_images]
        self._sets[name] = images[self._numbers[name]]

    # -- scores of images --------------------------------------------------------------------------

    def evaluate(self, trainer: Trainer, pl_module: Any, batch: Any) -> None:
        if not self._sets:
            return
        self._columns: list[str] = []
        rank_zero_info(f"OODScores: scoring images of {', '.join(self._sets)}")
        if self._background is not None:
            self._background.to(pl_module.device)
        self._rows = {name: PerImage().to(pl_module.device) for name in self._sets}
        batches = {name: images.split(self.batch_size) for name, images in self._sets.items()}
        rank, world = trainer.global_rank, trainer.world_size
        each = [(name, i) for name, parts in batches.items() for i in range(rank, max(len(parts), world), world)]
        for name, i in tracked(each, "out-of-distribution scores"):
            mine = i < len(batches[name])  # a rank without a batch needs the names of the columns
            columns = self._columns_of(pl_module, batches[name][i if mine else 0], mixed_seed(self.seed, i))
            self._columns = list(columns)
            values = torch.stack([exact(c).to(exact_device(pl_module.device)) for c in columns.values()], -1)
            index = i * self.batch_size + torch.arange(len(values), device=pl_module.device)
            self._rows[name].update(values[: None if mine else 0], index[: None if mine else 0])

    def _columns_of(self, model: Any, images: Tensor, seed: int) -> dict[str, Tensor]:
        """What the scores of each image are computed from; the draws do not depend on what else is scored."""
        x = from_uint8(images.to(model.device))
        columns, own = {}, for_weights(x, model)
        if isinstance(model, HasLogProb):
            with forked_rng(seed, x.device):
                columns["log_prob"] = model.log_prob(own)
            if self._background is not None:
                with forked_rng(seed, x.device):
                    columns["background"] = self._background.log_prob(x)
        if isinstance(model, HasOODScores):
            with forked_rng(seed, x.device):
                columns |= ood.spread(model.ood_scores(own))
        return columns

    # -- numbers -----------------------------------------------------------------------------------

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._rows:
            return
        columns = {name: dict(zip(self._columns, rows.compute().T, strict=True)) for name, rows in self._rows.items()}
        self._rows = {}
        metrics = trainer.strategy.broadcast(self._evaluate(ood.gathered(columns)) if trainer.is_global_zero else {})
        self.log_numbers(pl_module, "ood", metrics)

    def _evaluate(self, columns: dict[str, dict[str, Tensor]]) -> dict[str, float]:
        log_probs = {name: c.pop("log_prob") for name, c in columns.items() if "log_prob" in c}
        self._scores = columns
        for name, values in tracked(list(log_probs.items()), "code lengths of the sets"):
            length = ood.stored_code_length(self._sets[name], self.cache)
            background = columns[name].pop("background", None)
            # the columns that are left are the model's own scores
            self._scores[name] = ood.scores(values, log_probs["train"], length, background) | columns[name]
        add_density_of_states(self._scores)
        inside = self._scores["test"]
        metrics = {f"{name}/log_prob": float(values.mean()) for name, values in log_probs.items()}
        outside = [name for name in self._numbers if name not in ("train", "test", "held_out")]
        measured = {
            (name, score): ood.detection(inside[score], self._scores[name][score], self.resamples, self.seed)
            for name, score in tracked([(name, score) for name in outside for score in inside], "bootstrap of AUROC")
        }
        for (name, score), measures in measured.items():
            metrics |= {f"{name}/{measure}_{score}": values[0] for measure, values in measures.items()}
        self._auroc = {key: measures["auroc"][0] for key, measures in measured.items()}
        self._table = score_table(self._scores, log_probs, self._kind, measured)
        if self.headline and self.headline not in inside:
            raise UserError(f"OODScores: there is no score {self.headline}: choose headline from {', '.join(inside)}")
        if headline := [metrics[key] for n in self._others if (key := f"{n}/auroc_{self._headline}") in metrics]:
            metrics[f"auroc_{self._headline}"] = sum(headline) / len(headline)
            self.reported = {f"ood/auroc_{self._headline}": ".3f"}
        broken = sum(int((~values.isfinite()).sum()) for scores in self._scores.values() for values in scores.values())
        metrics["not_finite"] = float(broken)
        if broken:
            rank_zero_warn(f"{broken} out-of-distribution scores are NaN or infinite: NaN counts as the wrong answer")
        return metrics

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if not self._sets or not trainer.is_global_zero:
            return
        warning = WARNING if "likelihood" in self._scores["test"] else OWN
        print(f"\nAUROC of out-of-distribution images\n{short_table(self._auroc)}\n{warning}")
        for score in self._scores["test"]:
            values = {name: scores[score] for name, scores in self._scores.items()}
            log_image(
                trainer, folder, f"ood-{score}", histograms(values, f"{score} (higher: further out of distribution)")
            )
        if folder is not None:
            (folder / "ood").mkdir(parents=True, exist_ok=True)
            (folder / "ood" / "table.md").write_text(f"{self.describe_test()}\n\n{self._table}\n\n{warning}\n")
            write_scores(folder / "ood" / "scores.csv", self._numbers, self._scores)

    def describe_test(self) -> str:
        """The protocol of the numbers."""
        if not self._sets:
            return ""
        text = (
            f"test images against each set, up to {self.num_images:,} images of each, all brought to {self._pixels}; "
            f"seed {self.seed}, {self.batch_size} at a time; "
            f"95 % bootstrap intervals ({self.resamples} resamples); AUPR with the other set as positive class"
        )
        text += f"; ood/auroc_{self._headline}: mean over {', '.join(self._others) or 'no set'}{self._folders}"
        if "likelihood" not in self._scores["test"]:
            return f"{text}; {OWN}{self._unlabelled}"
        return f"{text}; log p(x): {self._kind}; {HOW}"
