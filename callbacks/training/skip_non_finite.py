"""Steps whose gradients are NaN or infinite."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lit_generative.errors import UserError, require_at_least
from lit_generative.training.log import NonFiniteError


class SkipNonFinite(Callback):
    """Skip steps whose gradients have NaN or infinite values, and count them, instead of stopping the run.

    It waits for the device in every step. ``train/skipped_steps`` is logged; losses that were averaged over such a step
    are NaN. Buffers that it made NaN or infinite, such as the statistics of batch norm, are restored.

    Args:
        at_most: Skipped steps in a row; one more stops the run.
    """

    def __init__(self, at_most: int = 10) -> None:
        require_at_least(self, 1, at_most=at_most)
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
        step, which = trainer.global_step, id(optimizer)
        finite = not norms or bool(torch.stack(norms).isfinite().all())
        # each process may hold a part of the gradients
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            self._in_a_row[which] = 0
            return
        pl_module.skipped_steps += 1
        self._in_a_row[which] = self._in_a_row.get(which, 0) + 1
        if self._in_a_row[which] > self.at_most:
            raise NonFiniteError(
                f"gradients were NaN or infinite in {self._in_a_row[which]} steps in a row, up to {step}"
            )
        rank_zero_warn(f"step {step} is skipped: its gradients are NaN or infinite ({pl_module.skipped_steps} so far)")
        for p in learning:
            p.grad = None  # optimisers skip it
        for buffer, before in zip(_numbers(pl_module), self._buffers, strict=True):
            if not buffer.isfinite().all():
                buffer.copy_(before)


def _numbers(model: LightningModule) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]
