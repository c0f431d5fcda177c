"""Any model on any data: ``python train.py {fit,validate,test,predict,sample,export} --help``."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace, auto_cli
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import datamodules
import lit_generative.models
from callbacks import CheckMonitors, PredictionWriter, Progress, Report, SaveOnSignal, WandbRecord
from callbacks.defaults import default_callbacks
from lit_generative.checkpoints import init_from
from lit_generative.checkpoints.best import DEFAULT_MONITOR, BestModelCheckpoint
from lit_generative.checkpoints.last import AtomicCheckpointIO, LastCheckpoint
from lit_generative.checkpoints.load import (
    import_classes,
    require_same_meaning,
    require_same_shapes,
    require_training_state,
)
from lit_generative.cli.arguments import (
    add_run_arguments,
    as_list,
    choose_optimization,
    classes_first,
    gives,
    named,
    narrow_trainer_types,
    option,
    require_known,
    require_values,
)
from lit_generative.cli.commands import export, sample
from lit_generative.cli.messages import calm, please_report, readable
from lit_generative.cli.resume import resume, with_checkpoint
from lit_generative.errors import UserError
from lit_generative.generative_model import GenerativeModel
from lit_generative.training.log import NonFiniteError
from lit_generative.training.run_logger import RunLogger, start_wandb
from lit_generative.utils.files import unused

DESCRIPTION = "Deep generative models. Beside the subcommands below, `train.py sample` and `export` take a checkpoint."
RUNS = "runs"  # the default of --trainer.default_root_dir, which loggers with this save_dir follow
CHOICES: dict[str, tuple[type, str]] = {
    "model": (LightningModule, lit_generative.models.__name__),
    "data": (LightningDataModule, datamodules.__name__),
    "optimizer": (Optimizer, "torch.optim"),
    "lr_scheduler": (LRScheduler, "torch.optim"),
}


class CLI(LightningCLI):
    """LightningCLI in which a checkpoint is enough, and whatever is said on the command line wins over it."""

    def __init__(self, args: list[str], debug: bool = False) -> None:
        self.debug, self.args = debug, args
        self.failure: Exception | None = None  # of a constructor
        parser_kwargs = {name: {"exit_on_error": False} for name in self.subcommands()}
        self.checkpoint: dict[str, Any] | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={"default_root_dir": RUNS},
            parser_kwargs={"description": DESCRIPTION, "exit_on_error": False, **parser_kwargs},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # checkpoints are the same from here and from a notebook
            args=args,
        )

    # -- arguments ---------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method there
        """The one that was asked for, whose parser alone is built; all for the help, or where there is none."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in self.args[:1] if name in known} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_run_arguments(parser)
        parser.add_lightning_class_args(BestModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.monitor": DEFAULT_MONITOR, "checkpoint.enable_version_counter": False})
        narrow_trainer_types(parser)
        parser.add_instantiator(self._build, object)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults({"weights_only": True})  # no checkpoint is ever unpickled
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # `Report` prints the table
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Put what a checkpoint says of its model and data before all arguments, so that those win."""
        for key, (base, package) in CHOICES.items():
            require_known(args, key, base, package)
        import_classes(named(args))  # a checkpoint may speak of them, and imports nothing itself
        self.checkpoint, args = with_checkpoint(args)
        try:
            self.config = parser.parse_args(args[:1] + classes_first(args[1:]))
        except (KeyError, TypeError, ValueError) as error:  # of a damaged file
            raise UserError(f"a configuration cannot be read: {error}") from error
        config = self.config[self.config.subcommand]
        if config.optimizer is not None and not gives(args, "optimizer", "lr"):
            config.optimizer.init_args.pop("lr", None)  # the default of a class that knows no model
        self.placed = config.name is not None or option(args, "--trainer.default_root_dir") is not None
        config.name = config.name or run_name(config)
        self.version: int | None = None
        if config.get("resume") and self.config.subcommand != "fit":
            raise UserError("--resume goes on with training: it is for fit")
        if config.get("resume"):
            config.resume = False  # it says how this process starts, and is no setting of the run
            self.checkpoint, self.version = resume(config)
        if self.checkpoint is not None and config.init_from is not None:
            rank_zero_info(f"{config.init_from} is not loaded: the weights are those of {config.ckpt_path}")
            config.init_from = None

    def _parse_ckpt_path(self) -> None:
        """Lightning's own version lets the checkpoint win over the command line."""

    # -- objects -----------------------------------------------------------------------------------

    def _build(self, cls: type, *args: Any, **kwargs: Any) -> Any:
        """``cls(*args, **kwargs)`` of what the configuration names."""
        if kwargs.get("save_dir") == RUNS:
            kwargs["save_dir"] = self.config[self.config.subcommand].trainer.default_root_dir
        try:
            require_values(cls, kwargs)
            return cls(*args, **kwargs)
        except Exception as error:
            self.failure = error
            raise

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError:  # jsonargparse's account of the types it tried hides what a constructor said
            if self.failure is None:
                raise
            raise self.failure from self.failure.__cause__

    def after_instantiate_classes(self) -> None:
        if isinstance(self.model, GenerativeModel):
            self.model.require_fitting(self.datamodule)  # before a download
        config = self.config[self.subcommand]
        if self.subcommand != "fit" and (config.ckpt_path or config.init_from) is None:
            raise UserError(f"to {self.subcommand} needs weights that were trained: name a --ckpt_path")
        choose_optimization(self.model, config)
        if config.init_from is not None:
            init_from(self.model, config.init_from, config.init_from_raw, config.init_from_partly)
        if self.checkpoint is not None:
            if self.subcommand == "fit":
                require_training_state(self.checkpoint)
            require_same_shapes(self.model, self.checkpoint, self.config[self.subcommand].ckpt_path)
            require_same_meaning(self.model, self.checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's folder, a CSV logger in front of any other, and the grids that this model can give."""
        config = self.config_init[self.subcommand]
        folder, name = Path(config.trainer.default_root_dir).expanduser(), config.name
        trains = self.subcommand == "fit"
        if config.trainer.barebones:
            quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
            for key in quiet:
                config.trainer[key] = bool(config.trainer[key])
        saves = trains and not config.trainer.fast_dev_run and config.trainer.enable_checkpointing is not False
        if not saves:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
            kwargs["enable_checkpointing"] = False
        if self.subcommand != "fit" and not self.placed:
            run = Path(config.ckpt_path or "").parent
            if run.name == "checkpoints":  # written beside the run that was trained
                folder, name = run.parent, self.subcommand
        if saves:
            config.checkpoint.settle(self.model, self.datamodule, config.trainer.limit_val_batches != 0)
        if config.trainer.barebones:
            self.save_config_callback = None  # there is no folder for it
        else:
            kwargs["logger"] = self._loggers(config, folder, name)
        plugins = as_list(config.trainer.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        kwargs["plugins"] = plugins
        callbacks: list[Callback] = as_list(config.trainer.callbacks)
        if config.trainer.callbacks != [] and not config.trainer.barebones:  # []: none
            callbacks += default_callbacks(self.model, callbacks, tests=self.subcommand == "test")
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if config.trainer.enable_progress_bar is not False and not has_bar:
            callbacks = [*callbacks, Progress()]
        summary = config.trainer.enable_model_summary is not False
        kwargs["enable_model_summary"] = summary and self.debug  # else `Report` has it
        trainer = super().instantiate_trainer(
            callbacks=[*callbacks, PredictionWriter(), Report(summary), SaveOnSignal(), WandbRecord(), CheckMonitors()],
            **kwargs,
        )
        if saves:
            # after the best, whose own save_last writes only when there is a better one
            trainer.callbacks.append(LastCheckpoint(config.save_every))  # type: ignore[attr-defined]
        return trainer

    def _loggers(self, config: Namespace, folder: Path, name: str) -> list[Logger]:
        steps = 0
        if self.version is not None and self.checkpoint is not None:
            steps = self.checkpoint["global_step"]
            config_file = unused(folder / name / f"version_{self.version}" / f"config_from_step{steps}.yaml")
            self.save_config_kwargs = {"config_filename": config_file.name}  # beside the first
        others = as_list(config.trainer.logger)
        for logger in others:
            if isinstance(logger, WandbLogger):
                start_wandb(logger)
        return [RunLogger(folder, name, self.version, steps, curves=config.trainer.logger is not False), *others]


def run_name(config: Namespace) -> str:
    """A run is named after its first recipe, fragments aside, or after its model and data."""
    for path in config.get("config") or []:
        # a configuration given as text has no name
        if path is not None and Path(str(path)).absolute().parent.name not in ("logger", "trainer"):
            return Path(str(path)).stem
    return "_".join(config[key].class_path.split(".")[-1].lower() for key in ("model", "data"))


def leave_together() -> None:
    """Close the connections between processes: gloo may abort one whose peers vanish while it exits."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def main(args: list[str]) -> None:
    """Run a subcommand; a user's mistake ends in a line, all else in a traceback, as with ``--debug``: exit code 1."""
    debug = "--debug" in args
    with calm(debug):
        run([a for a in args if a != "--debug"], debug)


def run(args: list[str], debug: bool) -> None:
    """The same, without ``--debug`` among the arguments."""
    try:
        if args[:1] == ["sample"]:
            auto_cli(sample, args=args[1:], as_positional=False, exit_on_error=False)
        elif args[:1] == ["export"]:
            auto_cli(export, args=args[1:], as_positional=False, exit_on_error=False)
        else:
            CLI(args, debug)
            leave_together()
    except SIGTERMException as asked:
        leave_together()
        sys.exit(128 + int(next(iter(asked.args), signal.SIGTERM)))
    except Exception as error:
        message = readable(error)
        if message is None:
            error.add_note(please_report(args))
        if message is None or debug:
            raise
        # a loss that is NaN ends all processes, and one of them says so
        said = isinstance(error, NonFiniteError) and int(os.environ.get("LOCAL_RANK", 0)) > 0
        sys.exit(1 if said else f"error: {message} (--debug shows where)")


if __name__ == "__main__":
    main(sys.argv[1:])
