"""The optimizer and the weights with which a run starts."""

from typing import Any

from jsonargparse import Namespace

from lit_generative.checkpoints import init_from
from lit_generative.checkpoints.load import require_same_meaning, require_same_shapes, require_training_state
from lit_generative.errors import UserError


def prepare_model(model: Any, config: Namespace, checkpoint: dict[str, Any] | None, subcommand: str) -> None:
    """Apply ``--optimizer``, ``--lr_scheduler``, ``--compile`` and ``--init_from``; check that the checkpoint fits.

    Raises:
        UserError: There are no trained weights to evaluate, or a choice or the checkpoint does not suit the model.
    """
    if subcommand != "fit" and (config.ckpt_path or config.init_from) is None:
        raise UserError(f"{subcommand} needs trained weights: name a checkpoint by --ckpt_path")
    choose_optimization(model, config)
    if config.compile:
        model.compile("default" if config.compile is True else config.compile)
    if config.init_from is not None:
        init_from(model, config.init_from, config.init_from_raw, config.init_from_partly)
    if checkpoint is not None:
        if subcommand == "fit":
            require_training_state(checkpoint)
        require_same_shapes(model, checkpoint, config.ckpt_path)
        require_same_meaning(model, checkpoint)


def choose_optimization(model: Any, config: Namespace) -> None:
    """Replace the model's optimizer and schedule by those of the configuration, if any."""
    if config.optimizer is not None:
        arguments = config.optimizer.get("init_args", Namespace()).as_dict()
        model.use_optimizer(config.optimizer.class_path, **arguments)
    if config.lr_scheduler is not None:
        arguments = config.lr_scheduler.get("init_args", Namespace()).as_dict()
        model.use_lr_scheduler(config.lr_scheduler.class_path, config.lr_scheduler_interval, **arguments)
