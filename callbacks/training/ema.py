"""Exponential moving average of the weights of named networks."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lit_generative.checkpoints.record import record
from lit_generative.errors import UserError


class EMA(Callback):
    """Average the weights, and evaluate and save the model with the averages.

    After update n the average moves by 1 - min(decay, (1 + n) / (10 + n)) towards the weights: a warm-up. Buffers, such
    as the statistics of batch norm, are copied. The averages are in the model in validation, test and prediction, and
    after training. They are the ``state_dict`` of a checkpoint, so that ``sample`` and ``test`` need nothing else; the
    raw weights, with which training is resumed, are saved beside them.

    Args:
        networks: Names of the model's sub-modules.
        decay: Upper limit of the decay.
        every_n_steps: Steps from one update to the next; for GANs steps of the generator.
    """

    def __init__(self, networks: Sequence[str] = ("generator",), decay: float = 0.999, every_n_steps: int = 1) -> None:
        if not networks or not 0 <= decay < 1 or every_n_steps < 1:
            raise UserError(
                f"EMA: networks must not be empty, decay in [0, 1), every_n_steps >= 1; got {networks}, "
                f"{decay}, {every_n_steps}"
            )
        self.networks, self.decay, self.every_n_steps = tuple(networks), decay, every_n_steps
        self._averages: dict[str, AveragedModel] = {}
        self._model: Callable[[], LightningModule | None] = lambda: None  # the model that they belong to
        self._in_place = False  # whether the model holds the averages, and `_averages` the raw weights
        self._steps = 0

    def _average(self, averages: Any, weights: Any, n: Tensor | int) -> None:
        weights = [w.to(a.dtype) for a, w in zip(averages, weights, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self._decay)  # n is on the device: reading it would wait

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        own = [name for name, part in pl_module.named_children() if any(True for _ in part.parameters())]
        if missing := [name for name in self.networks if name not in own]:
            raise UserError(
                f"EMA: {type(pl_module).__name__} has no network {', '.join(missing)}; choose from {', '.join(own)}"
            )
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError("EMA needs whole weights, but FSDP shards them: remove EMA or choose another strategy")
        if stage == "fit" and self._model() is not pl_module:
            self._model, self._in_place = weakref.ref(pl_module), False
            self._averages = {
                name: AveragedModel(getattr(pl_module, name), multi_avg_fn=self._average) for name in self.networks
            }

    # -- training ----------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, average in self._averages.items():  # after `setup`, the Trainer has moved and converted the model
            dtype = next(getattr(pl_module, name).parameters()).dtype
            # its counter stays on the CPU; half precision would lose what a step adds
            average.module.to(pl_module.device, torch.promote_types(dtype, torch.float32))
        self._exchange(pl_module, in_place=False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._steps = self._count(trainer, pl_module)

    @staticmethod
    def _count(trainer: Trainer, pl_module: LightningModule) -> int:
        return getattr(pl_module, "generator_steps", trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = self._count(trainer, pl_module)
        if steps != self._steps and steps % self.every_n_steps == 0:
            for name, average in self._averages.items():
                n = int(average.n_averaged)
                self._decay = min(self.decay, (1 + n) / (10 + n))
                average.update_parameters(getattr(pl_module, name))

    # -- evaluation: averages are swapped in before batch hooks and out after them, in any order of callbacks --

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchange(pl_module, in_place=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._exchange(pl_module, in_place=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchange(pl_module, in_place=True)

    def _exchange(self, pl_module: LightningModule, in_place: bool) -> None:
        if in_place == self._in_place:
            return
        with torch.no_grad():
            for name, average in self._averages.items():
                network = getattr(pl_module, name)
                for a, b in zip(average.module.parameters(), network.parameters(), strict=True):
                    kept = a.clone()
                    a.copy_(b)
                    b.copy_(kept)
        self._in_place = in_place

    # -- checkpoints -------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._averages:
            return
        raw, state = {}, checkpoint["state_dict"]
        for name, average in self._averages.items():
            for key, value in average.module.named_parameters():
                full = f"{name}.{key}"
                # the model holds one of the two, we the other
                raw[full], state[full] = (
                    (value.detach(), state[full]) if self._in_place else (state[full], value.detach())
                )
        own = record(checkpoint)
        own["training_weights"] = {key: value.clone() for key, value in raw.items()}
        own["ema"] = {"updates": {name: int(average.n_averaged) for name, average in self._averages.items()}}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue training with the averages of the checkpoint; for evaluation they are in its ``state_dict``."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._averages, self._model, self._in_place = {}, lambda: None, False  # a later training begins
            return
        own = record(checkpoint)
        averages, updates = own.get("averages", {}), own.get("ema", {}).get("updates", {})
        for name, average in self._averages.items():
            average.module.load_state_dict(getattr(pl_module, name).state_dict())
            average.n_averaged.fill_(updates.get(name, 0))  # 0: trained without its average until here
            with torch.no_grad():
                for key, p in average.module.named_parameters():
                    p.copy_(averages.get(f"{name}.{key}", p))
        self._in_place = False
