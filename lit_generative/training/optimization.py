"""Optimisers and learning rate schedules: each model's own, or those that the user chooses in their place."""

import inspect
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from lit_generative.checkpoints.load import known_classes
from lit_generative.errors import UserError
from lit_generative.training.progress import progress

Choice = dict[str, Any]  # {"class_path": ..., "init_args": {...}}, as in a configuration


class Optimizes(LightningModule):
    """A model that writes `default_optimizers`.

    Learning rates follow ``lr_warmup_steps`` and ``lr_decay_start``, unless the user chooses others.
    """

    monitor: str | None
    lr_decay_start: float = 1.0
    lr_warmup_steps: int = 0
    chosen_optimizer: Choice | None = None
    chosen_lr_scheduler: Choice | None = None

    def default_optimizers(self) -> list[Optimizer]:
        """The paper's optimisers, one for each network that has its own."""
        raise NotImplementedError

    def use_optimizer(self, optimizer: str, **init_args: Any) -> None:
        """Train with another optimiser: one for each network, over the same parameters.

        It stands in the checkpoint, and a run that goes on from that has it too.

        Args:
            optimizer: Name of a subclass of ``torch.optim.Optimizer`` that has been imported, such as ``AdamW``.
            init_args: Its arguments, of plain types; without ``lr`` the learning rates are the model's.

        Raises:
            ValueError: There is no such class, or it does not take these arguments.
        """
        self.chosen_optimizer = choice(optimizer, Optimizer, init_args, given="params")

    def use_lr_scheduler(self, scheduler: str, interval: str = "epoch", **init_args: Any) -> None:
        """Let learning rates follow another schedule than ``lr_decay_start`` and ``lr_warmup_steps``.

        Args:
            scheduler: Name of a subclass of ``torch.optim.lr_scheduler.LRScheduler``, such as ``CosineAnnealingLR``.
                ``ReduceLROnPlateau`` looks at the model's ``monitor``.
            interval: ``epoch`` or ``step``: how often it moves, and the unit of its arguments.
            init_args: Its arguments, of plain types.

        Raises:
            ValueError: There is no such class, or it does not take these arguments.
        """
        if interval not in ("epoch", "step"):
            raise UserError(f"a learning rate moves every epoch or every step, got {interval}")
        self.chosen_lr_scheduler = choice(scheduler, LRScheduler, init_args, given="optimizer") | {"interval": interval}

    def configure_optimizers(self) -> Any:
        optimizers = self.default_optimizers()
        if self.chosen_optimizer is not None:
            optimizers = [self._chosen(optimizer) for optimizer in optimizers]
        return [{"optimizer": optimizer, **self._schedule(optimizer)} for optimizer in optimizers]

    def _chosen(self, default: Optimizer) -> Optimizer:
        assert self.chosen_optimizer is not None
        cls, arguments = named_class(self.chosen_optimizer["class_path"], Optimizer), self.chosen_optimizer["init_args"]
        keys = ("params",) if "lr" in arguments else ("params", "lr")
        groups = [{key: group[key] for key in keys} for group in default.param_groups]
        if arguments.get("fused") is None and "fused" in inspect.signature(cls).parameters:
            arguments = arguments | {"fused": self.fused}
        try:
            return cls(groups, **arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"{cls.__name__}: {error}") from error

    def _schedule(self, optimizer: Optimizer) -> dict[str, Any]:
        if self.chosen_lr_scheduler is not None:
            cls = named_class(self.chosen_lr_scheduler["class_path"], LRScheduler)
            if cls is ReduceLROnPlateau and not self.automatic_optimization:
                raise UserError(f"{type(self).__name__} has no loss to watch: ReduceLROnPlateau cannot be used")
            try:
                schedule = cls(optimizer, **self.chosen_lr_scheduler["init_args"])
            except (TypeError, ValueError) as error:
                raise UserError(f"{cls.__name__}: {error}") from error
            config = {"scheduler": schedule, "interval": self.chosen_lr_scheduler["interval"]}
            return {"lr_scheduler": config | ({"monitor": self.monitor} if cls is ReduceLROnPlateau else {})}
        if self.lr_decay_start >= 1 and not self.lr_warmup_steps:
            return {}
        if self.lr_decay_start < 1:
            self.require_length("lr_decay_start < 1")
        schedule = LambdaLR(optimizer, lambda step: self._lr_factor(step))
        return {"lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lr_factor(self, step: int) -> float:
        """A linear rise over ``lr_warmup_steps`` steps, and a linear fall to 0 from ``lr_decay_start`` of the run on.

        A resumed run of another length follows the schedule of that length from where it stands, see `progress`.
        """
        rise = min(1.0, (step + 1) / (self.lr_warmup_steps + 1))
        if self.lr_decay_start >= 1:
            return rise
        return min(rise, (1 - progress(self.trainer)) / (1 - self.lr_decay_start))

    @property
    def fused(self) -> bool:
        """Whether optimisers may be fused, which is faster: with mixed precision, Lightning cannot clip for those."""
        trainer = self._trainer
        mixed = trainer is not None and isinstance(trainer.precision_plugin, MixedPrecision)
        return not (mixed and self.trainer.gradient_clip_val)

    def require_length(self, option: str) -> None:
        """Raise a ValueError if it is not known how long this run is."""
        if self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise UserError(f"{option} needs to know the length of the run: set --trainer.max_epochs or max_steps")

    def optimization_choices(self) -> dict[str, Choice]:
        """What the user has chosen, for a checkpoint."""
        chosen = {"optimizer": self.chosen_optimizer, "lr_scheduler": self.chosen_lr_scheduler}
        return {name: value for name, value in chosen.items() if value is not None}

    def restore_choices(self, saved: dict[str, Choice]) -> None:
        """Take those of a checkpoint that training goes on from.

        Raises:
            ValueError: Others were chosen already.
        """
        own = self.optimization_choices()
        for name, value in saved.items():
            if name in own and own[name] != value:
                raise UserError(
                    f"the run was trained with another {name} ({value}) than {own[name]}: leave it out; to start a "
                    "new run from these weights, use --init_from"
                )
            setattr(self, f"chosen_{name}", value)


def named_class(path: str, base: type) -> type:
    """The imported subclass of ``base`` of that name, with or without its module; checkpoints import no others."""
    module, _, name = path.rpartition(".")
    for cls in known_classes(base):
        if cls.__name__ == name and cls.__module__.startswith(module.partition(".")[0]) and not name.startswith("_"):
            return cls
    raise UserError(f"there is no {base.__name__} called {path}: its module must be imported first")


def choice(path: str, base: type, init_args: dict[str, Any], given: str) -> Choice:
    """A class and its arguments as a configuration has them.

    Raises:
        ValueError: There is no such class, or it does not take these arguments beside the ``given`` one.
    """
    cls = named_class(path, base)
    known = [name for name in inspect.signature(cls).parameters if name != given]
    if unknown := [name for name in init_args if name not in known]:
        raise UserError(f"{cls.__name__} has no argument {unknown[0]}: it has {', '.join(known)}")
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}
