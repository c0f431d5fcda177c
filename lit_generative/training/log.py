"""The means of a training step's numbers, logged cheaply and exactly across resumed runs."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lit_generative.checkpoints.best import last_checkpoint, run_checkpoint
from lit_generative.errors import UserError


class NonFiniteError(UserError):
    """A loss, or one of its terms, is NaN or infinite; the message names the step, the term and what to do."""


class TrainLog(LightningModule):
    """Training steps hand their numbers to `log_terms`; their means are logged when a line is written.

    `self.log` costs 0.3 to 0.7 ms a value and step, written or not (benchmarks/overhead.py); this, one small addition.
    """

    stops_at_non_finite = True
    skipped_steps = 0  # by the callback SkipNonFinite
    _sums: Mapping[tuple[str, ...], list[Any]] = MappingProxyType({})  # names: sums of values, number of steps
    _losses: Mapping[str, Tensor] = MappingProxyType({})  # of the last line
    _images: int = 0
    _logged_step: int = 0
    _written: frozenset[str] = frozenset()  # names in earlier lines

    @property
    def processes(self) -> int:
        """Processes that train together; 1 without a trainer."""
        return 1 if self._trainer is None else self._trainer.world_size

    @property
    def names_gathered(self) -> set[str]:
        """What the next line of the curves will hold, of the batches until now."""
        return {f"train/{name}" for names in self._sums for name in names}

    def over_processes(self, value: Tensor) -> Tensor:
        """The mean of ``value`` over the processes of a training step, without gradients."""
        if self.processes == 1 or not self.trainer.training:
            return value.detach()
        reduced: Tensor = self.trainer.strategy.reduce(value.detach(), reduce_op="mean")
        return reduced

    def log_terms(self, metrics: Mapping[str, Tensor], images: int) -> None:
        """Add scalars of one training step, to be logged as ``train/<name>`` means at the next written line.

        The first is the loss. May be called several times a step, with other names; ``images`` are those of the step
        that were not counted.
        """
        values = torch.stack([v.detach().float() for v in metrics.values()])
        if values.device.type == "cpu" and self.processes == 1:
            self._require_finite(tuple(metrics), values)
        # else when a line is written: asking waits for a device, or for other processes
        group = self._sums.get(tuple(metrics))
        if group is None:
            self._sums = {**self._sums, tuple(metrics): [values, 1]}
        else:
            group[0] += values
            group[1] += 1
        self._images += images

    def _require_finite(self, names: tuple[str, ...], values: Tensor) -> None:
        if self.stops_at_non_finite and not values.isfinite().all():
            terms = [f"{name} is {value}" for name, value in zip(names, values.tolist(), strict=True)]
            self._stop(", ".join(term for term in terms if term.endswith((" nan", "inf"))))

    def _stop(self, wrong: str) -> NoReturn:
        best = getattr(run_checkpoint(self.trainer), "best_model_path", "")
        kept = next((p for p in (last_checkpoint(self.trainer), Path(best)) if p and p.is_file()), "none yet")
        other = ", or leave such steps out with the callback SkipNonFinite" if self.stops_at_non_finite else ""
        raise NonFiniteError(
            f"step {self.trainer.global_step}: {wrong}. The last checkpoint: {kept}. Lower the learning rate, or clip "
            f"gradients{other}"
        )

    def require_finite_weights(self, state: Mapping[str, Tensor]) -> None:
        """Raise a NonFiniteError in all processes if one is about to save weights that are NaN."""
        spoilt = [name for name, value in state.items() if value.isnan().any()]
        if self.processes == 1:
            healthy = not spoilt
        else:
            healthy = self.trainer.strategy.reduce_boolean_decision(not spoilt, all=True)
        if not healthy:
            self._stop(f"{spoilt[0] if spoilt else 'a weight'} is nan, and was not saved")

    def _everywhere(self, names: tuple[str, ...]) -> Tensor:
        """The mean over processes of the sums of these names; all stop where one's are not finite."""
        sums: Tensor = self._sums[names][0].clone()
        if self.processes > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="mean")
        self._require_finite(names, sums)
        return sums

    def on_train_epoch_start(self) -> None:
        self._clock, self._images = time.perf_counter(), 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Lightning numbers rows by a counter of its own, which some checkpoints leave one step off
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Any, batch_idx: int) -> None:
        if not self._line_is_due():
            return
        trainer, now = self.trainer, time.perf_counter()
        speed = self._images * trainer.world_size / (now - self._clock)
        line = self._line()
        # Lightning keeps values until the epoch ends, and would write them again in lines that lack them
        for item in trainer._results.values():  # type: ignore[union-attr]
            if item.meta.name in self._written:
                item.reset()
        self._written |= line.keys()
        for i, (name, value) in enumerate(line.items()):
            self.log(name, value, prog_bar=i == 0)
        self.log("train/images_per_second", speed)
        self._logged_step, self._images, self._clock = trainer.global_step, 0, now

    def _line_is_due(self) -> bool:
        trainer: Any = self.trainer  # its connectors add attributes that type checkers do not see
        step, every = trainer.global_step, trainer.log_every_n_steps  # 0: no lines
        # several batches may share a step (accumulate_grad_batches), and a line is written once
        return bool(self._sums) and step != self._logged_step and every > 0 and step % every == 0

    def counters(self) -> dict[str, int]:
        """What a line of the curves says beside means."""
        return {"skipped_steps": self.skipped_steps} if self.skipped_steps else {}

    def _line(self) -> dict[str, Tensor]:
        """The counters, and the means of what was accumulated, which begins anew."""
        means: dict[str, Tensor] = {}
        self._losses = losses = {}
        for names, (_, steps) in self._sums.items():
            values = self._everywhere(names) / steps
            losses[names[0]] = values[0]
            means |= {f"train/{name}": mean for name, mean in zip(names, values, strict=True)}
        self._sums = {}
        return means | {f"train/{name}": torch.tensor(float(count)) for name, count in self.counters().items()}

    def latest_losses(self) -> Mapping[str, Tensor]:
        """Means of the losses over the line that was written last; before the first, over this process's steps."""
        return self._losses or {names[0]: sums[0] / steps for names, (sums, steps) in self._sums.items()}

    # -- across runs -------------------------------------------------------------------------------

    def log_begun(self) -> dict[str, Any]:
        """What a checkpoint keeps of the line that is not written yet."""
        sums = [[list(names), self._everywhere(names), steps] for names, (_, steps) in self._sums.items()]
        return {"sums": sums, "logged_step": self._logged_step, "skipped_steps": self.skipped_steps}

    def start_log(self, begun: dict[str, Any] | None) -> None:
        """Go on with what `log_begun` gave, or begin."""
        trainer = self.trainer
        self._images, self._clock = 0, time.perf_counter()  # an epoch that is resumed has no start
        self._sums, self._losses, self._logged_step, self.skipped_steps = {}, {}, trainer.global_step, 0
        if begun is None:
            return
        self._sums = {tuple(names): [sums.to(self.device), steps] for names, sums, steps in begun["sums"]}
        self._logged_step, self.skipped_steps = begun["logged_step"], begun.get("skipped_steps", 0)
        if self._line_is_due():  # checkpoints are written before the line of their step, and a kill may come between
            line = {name: value.item() for name, value in self._line().items()} | {"epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                logger.log_metrics(line, trainer.global_step - 1)
            self._logged_step = trainer.global_step
