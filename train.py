"""Any model on any data: ``python train.py {fit,validate,test,predict,sample,export,report} --help``."""

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
from callbacks.reporting._screen import TaskScreen
from lit_generative.checkpoints.best import DEFAULT_MONITOR, BestModelCheckpoint
from lit_generative.checkpoints.last import AtomicCheckpointIO, LastCheckpoint
from lit_generative.checkpoints.load import import_classes
from lit_generative.cli.arguments import (
    add_run_arguments,
    as_list,
    classes_first,
    configurations,
    is_given,
    narrow_trainer_types,
    option,
    require_known,
    require_values,
    run_name,
)
from lit_generative.cli.commands import export, report, sample
from lit_generative.cli.messages import bug_report, concise_output, user_message
from lit_generative.cli.model import prepare_model
from lit_generative.cli.resume import resume, with_checkpoint
from lit_generative.errors import UserError
from lit_generative.generative_model import GenerativeModel
from lit_generative.training.log import NonFiniteError
from lit_generative.training.run_logger import RunLogger, start_wandb
from lit_generative.utils.files import unused
from lit_generative.utils.memory import keep_freed_memory
from lit_generative.utils.tasks import show_tasks

DESCRIPTION = "Deep generative models. `train.py sample`, `export` and `report` need no data."
RUNS = "runs"  # default of --trainer.default_root_dir; a logger with this save_dir follows that argument
CHOICES: dict[str, tuple[type, str]] = {
    "model": (LightningModule, lit_generative.models.__name__),
    "data": (LightningDataModule, datamodules.__name__),
    "optimizer": (Optimizer, "torch.optim"),
    "lr_scheduler": (LRScheduler, "torch.optim"),
}


class CLI(LightningCLI):
    """LightningCLI that takes model and data from a checkpoint; command line arguments override them."""

    def __init__(self, args: list[str], debug: bool = False) -> None:
        self.debug, self.args = debug, args
        self.checkpoint: dict[str, Any] | None = None
        self.version: int | None = None  # of the run that --resume continues
        self.constructor_error: Exception | None = None
        parser_kwargs = {name: {"exit_on_error": False} for name in self.subcommands()}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={"default_root_dir": RUNS},
            parser_kwargs={"description": DESCRIPTION, "exit_on_error": False, **parser_kwargs},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # checkpoints are the same as those of a notebook
            args=args,
        )

    # -- arguments ---------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method there
        """The requested one, so that only its parser is built; all of them if there is none, as for the help."""
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
        parser.set_defaults({"weights_only": True})  # never unpickle a checkpoint
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # `Report` prints the table
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Put the checkpoint's model and data before all arguments, so that the arguments override them."""
        for key, (base, package) in CHOICES.items():
            require_known(args, key, base, package)
        import_classes(configurations(args))  # the checkpoint may need them, and never imports anything itself
        self.checkpoint, args = with_checkpoint(args)
        try:
            self.config = parser.parse_args(args[:1] + classes_first(args[1:]))
        except (KeyError, TypeError, ValueError) as error:  # a damaged file
            raise UserError(f"a configuration cannot be read: {error}") from error
        config = self.config[self.config.subcommand]
        if config.optimizer is not None and not is_given(args, "optimizer", "lr"):
            config.optimizer.init_args.pop("lr", None)  # torch's default; the model has its own
        self.folder_given = config.name is not None or option(args, "--trainer.default_root_dir") is not None
        config.name = config.name or run_name(config)
        if config.get("resume"):
            if self.config.subcommand != "fit":
                raise UserError(f"--resume continues training: use it with fit, not {self.config.subcommand}")
            config.resume = False  # so that the saved config.yaml does not ask to resume
            self.checkpoint, self.version = resume(config)
        if self.checkpoint is not None and config.init_from is not None:
            rank_zero_info(f"--init_from {config.init_from} is ignored: the weights come from {config.ckpt_path}")
            config.init_from = None

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's version lets the checkpoint override the command line."""

    # -- objects -----------------------------------------------------------------------------------

    def _build(self, cls: type, *args: Any, **kwargs: Any) -> Any:
        """``cls(*args, **kwargs)`` of a class in the configuration; keeps the error, if any."""
        if kwargs.get("save_dir") == RUNS:
            kwargs["save_dir"] = self.config[self.config.subcommand].trainer.default_root_dir
        try:
            require_values(cls, kwargs)
            return cls(*args, **kwargs)
        except Exception as error:
            self.constructor_error = error
            raise

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError:  # jsonargparse's list of the types it tried, which hides the constructor's message
            if self.constructor_error is None:
                raise
            raise self.constructor_error from self.constructor_error.__cause__

    def after_instantiate_classes(self) -> None:
        if isinstance(self.model, GenerativeModel):
            self.model.require_fitting(self.datamodule)  # before any download
        prepare_model(self.model, self.config[self.subcommand], self.checkpoint, self.config.subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's folder, its CSV logger, checkpoints, and the callbacks of every run."""
        config = self.config_init[self.subcommand]
        settings = config.trainer
        if settings.barebones:  # Lightning then accepts False, but not None
            for key in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"):
                settings[key] = bool(settings[key])
        saves = self.subcommand == "fit" and not settings.fast_dev_run and settings.enable_checkpointing is not False
        if saves:
            config.checkpoint.choose_monitor(self.model, self.datamodule, settings.limit_val_batches != 0)
        else:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
            kwargs["enable_checkpointing"] = False
        if settings.barebones:
            self.save_config_callback = None  # there is no folder for it
        else:
            kwargs["logger"] = self._loggers(config)
        plugins = as_list(settings.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        summary = settings.enable_model_summary is not False
        trainer = super().instantiate_trainer(
            callbacks=self._callbacks(settings, summary),
            plugins=plugins,
            enable_model_summary=summary and self.debug,  # else `Report` prints it
            **kwargs,
        )
        if saves:
            # after the best one's callback, whose save_last writes only when there is a new best
            trainer.callbacks.append(LastCheckpoint(config.save_every))  # type: ignore[attr-defined]
        return trainer

    def _callbacks(self, settings: Namespace, summary: bool) -> list[Callback]:
        callbacks: list[Callback] = as_list(settings.callbacks)
        if settings.callbacks != [] and not settings.barebones:  # []: the user wants none
            callbacks += default_callbacks(self.model, self.datamodule, callbacks, tests=self.subcommand == "test")
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if settings.enable_progress_bar is not False and not has_bar:
            callbacks.append(Progress())
        return [*callbacks, PredictionWriter(), Report(summary), SaveOnSignal(), WandbRecord(), CheckMonitors()]

    def _loggers(self, config: Namespace) -> list[Logger]:
        folder, name = Path(config.trainer.default_root_dir).expanduser(), config.name
        if self.subcommand != "fit" and not self.folder_given:
            run = Path(config.ckpt_path or "").parent
            if run.name == "checkpoints":  # write into the folder of the run that was trained
                folder, name = run.parent, self.subcommand
        step = 0
        if self.version is not None and self.checkpoint is not None:
            step = self.checkpoint["global_step"]
            config_file = unused(folder / name / f"version_{self.version}" / f"config_from_step{step}.yaml")
            self.save_config_kwargs = {"config_filename": config_file.name}  # keep the first part's config.yaml
        others = as_list(config.trainer.logger)
        for logger in others:
            if isinstance(logger, WandbLogger):
                start_wandb(logger)
        return [RunLogger(folder, name, self.version, step, curves=config.trainer.logger is not False), *others]


def leave_together() -> None:
    """Close the connections between processes: gloo may abort a process whose peers exit first."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def main(args: list[str]) -> None:
    """Run a subcommand; exit code 1 with one line for a user's mistake, with a traceback for a bug or ``--debug``."""
    keep_freed_memory()
    debug, args = "--debug" in args, [arg for arg in args if arg != "--debug"]
    commands: dict[str, Any] = {"sample": sample, "export": export}
    with concise_output(debug):
        try:
            if args[:1] == ["report"]:
                report(args[1:])
            elif args and args[0] in commands:
                show_tasks(TaskScreen())
                auto_cli(commands[args[0]], args=args[1:], as_positional=False, exit_on_error=False)
            else:
                CLI(args, debug)
                leave_together()
        except SIGTERMException as signalled:
            leave_together()
            sys.exit(128 + int(next(iter(signalled.args), signal.SIGTERM)))
        except Exception as error:
            message = user_message(error)
            if message is None:
                error.add_note(bug_report(args))
            if message is None or debug:
                raise
            # a loss that is NaN ends all processes, but only one prints the message
            printed_elsewhere = isinstance(error, NonFiniteError) and int(os.environ.get("LOCAL_RANK", 0)) > 0
            sys.exit(1 if printed_elsewhere else f"error: {message} (--debug shows where)")


if __name__ == "__main__":
    main(sys.argv[1:])
