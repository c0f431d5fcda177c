"""Sub-modules that are frozen, for some epochs or for good, or have another learning rate."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_generative.errors import UserError


class Finetuning(BaseFinetuning):
    """Freeze sub-modules, unfreeze them at some epoch, and scale the learning rates of sub-modules.

    Patterns of names are those of a shell: ``encoder``, ``denoiser.down*``. Frozen batch norm keeps its statistics.

    Args:
        freeze: Patterns of sub-modules to freeze.
        unfreeze: Patterns of sub-modules to unfreeze, each with the epoch (from 0) at whose start to do so.
        lr_factors: Patterns, each with a factor of the learning rate; the last that matches counts.

    Raises:
        ValueError: A pattern matches nothing, or sub-modules are to be unfrozen in a run of several processes.
    """

    def __init__(
        self,
        freeze: Sequence[str] = (),
        unfreeze: Mapping[str, int] | None = None,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.patterns, self.unfreeze_at, self.lr_factors = tuple(freeze), dict(unfreeze or {}), dict(lr_factors or {})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for pattern in (*self.patterns, *self.unfreeze_at, *self.lr_factors):
            if not any(_named(pl_module, pattern)):
                top = [name for name, part in pl_module.named_children() if any(True for _ in part.parameters())]
                raise UserError(
                    f"Finetuning: no sub-module of {type(pl_module).__name__} matches {pattern}: "
                    f"choose from {', '.join(top)} and their sub-modules"
                )
        if self.unfreeze_at and trainer.world_size > 1:
            # DDP decides at the start what it synchronizes, and would not synchronize what is unfrozen later
            raise UserError("Finetuning: unfreeze needs a single process: set --trainer.devices 1")
        super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        for pattern in self.patterns:
            self.freeze(list(_named(pl_module, pattern)), train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze what is due; optimisers have all parameters from the start, and skip those without gradients."""
        for pattern, start in self.unfreeze_at.items():
            if epoch >= start:
                self.make_trainable(list(_named(pl_module, pattern)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:  # a run that is resumed within an epoch does not start it
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        factors = {
            id(p): factor
            for pattern, factor in self.lr_factors.items()
            for module in _named(pl_module, pattern)
            for p in module.parameters()
        }
        for optimizer in trainer.optimizers if factors else ():
            origins = _split(optimizer, factors)
            for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
                if getattr(scheduler, "optimizer", None) is optimizer:
                    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
                    if isinstance(scheduler, LambdaLR):
                        scheduler.lr_lambdas = [scheduler.lr_lambdas[i] for i in origins]
        super().on_fit_start(trainer, pl_module)
        for optimizer in trainer.optimizers:
            if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
                raise UserError("Finetuning: all parameters of an optimiser are frozen: freeze fewer sub-modules")


def _named(model: nn.Module, pattern: str) -> Iterator[nn.Module]:
    return (module for name, module in model.named_modules() if fnmatchcase(name, pattern))


def _split(optimizer: Optimizer, factors: dict[int, float]) -> list[int]:
    """Split groups of parameters by factor; return the index of the group that each new group came from."""
    groups: list[dict[str, Any]] = []
    origins = []
    for i, group in enumerate(optimizer.param_groups):
        parts: dict[float, list[Any]] = {}
        for p in group["params"]:
            parts.setdefault(factors.get(id(p), 1.0), []).append(p)
        for factor, params in parts.items():
            rates = {key: group[key] * factor for key in ("lr", "initial_lr") if key in group}
            groups.append(group | rates | {"params": params})
            origins.append(i)
    optimizer.param_groups[:] = groups
    return origins
