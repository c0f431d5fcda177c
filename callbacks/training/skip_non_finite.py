"""Going on where a step's gradients are NaN or infinite."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lit_generative.errors import UserError
from lit_generative.training.log import NonFiniteError


class SkipNonFinite(Callback):
    """Leave out steps whose gradients hold NaN or infinite values, and count them, instead of stopping the run.

    Asking for it costs a wait for the device in every step. ``train/skipped_steps`` is logged; lines of the curves that
    hold such a step's loss are NaN. Buffers that it spoilt, as the statistics of a batch norm, are put back.

    Args:
        at_most: Steps in a row; with one more the run stops.
    """

    def __init__(self, at_most: int = 10) -> None:
        if at_most < 1:
            raise UserError(f"SkipNonFinite: at_most must be >= 1, got {at_most}")
        self.at_most = at_most
        self._in_a_row: dict[int, int] = {}  # by optimiser
        self._buffers: list[Tensor] = []  # as they were before the step

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise UserError("16-mixed skips such steps by itself: remove SkipNonFinite, or choose bf16-mixed")
        pl_module.stops_at_non_finite = False

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        pl_module.stops_at_non_finite = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0 and not getattr(pl_module, "step_begun", False):
            self._buffers = [buffer.clone() for buffer in _numbers(pl_module)]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        learning = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch._foreach_norm([p.grad for p in learning]) if learning else ()
        which, finite = id(optimizer), not norms or bool(torch.stack(norms).isfinite().all())
        # processes may hold parts of the gradients each
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            self._in_a_row[which] = 0
            return
        pl_module.skipped_steps += 1
        self._in_a_row[which] = self._in_a_row.get(which, 0) + 1
        if self._in_a_row[which] > self.at_most:
            step = trainer.global_step
            raise NonFiniteError(f"gradients were NaN or infinite in {self._in_a_row[which]} steps in a row, to {step}")
        rank_zero_warn(
            f"step {trainer.global_step}: NaN or infinite gradients, step skipped ({pl_module.skipped_steps} so far)"
        )
        for p in learning:
            p.grad = None  # which optimisers pass by
        for buffer, before in zip(_numbers(pl_module), self._buffers, strict=True):
            if not buffer.isfinite().all():
                buffer.copy_(before)


def _numbers(model: LightningModule) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]
