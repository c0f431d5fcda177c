"""Any model on any data: ``python train.py {fit,validate,test,predict,sample,export} --help``."""

import inspect
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace, auto_cli
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

import datamodules
import lit_generative.models
from callbacks import (
    CheckMonitors,
    PredictionWriter,
    Progress,
    ReconstructionGrid,
    Report,
    SampleGrid,
    SaveOnSignal,
    TranslationGrid,
    TranslationScores,
    WandbRecord,
)
from lit_generative.checkpoints import init_from
from lit_generative.checkpoints.best import DEFAULT_MONITOR, BestModelCheckpoint
from lit_generative.checkpoints.last import AtomicCheckpointIO, LastCheckpoint, newest_checkpoint
from lit_generative.checkpoints.load import (
    data_config,
    import_classes,
    known_classes,
    model_config,
    read_checkpoint,
    require_same_meaning,
    require_same_shapes,
    require_training_state,
    saved_class,
)
from lit_generative.checkpoints.record import record
from lit_generative.cli.arguments import (
    as_list,
    classes_first,
    named,
    narrow_trainer_types,
    option,
    require_values,
    same,
)
from lit_generative.cli.commands import export, sample
from lit_generative.cli.messages import calm, please_report, readable
from lit_generative.errors import UserError
from lit_generative.generative_model import GenerativeModel
from lit_generative.protocols import Reconstructs, Samples, Translates
from lit_generative.training.log import NonFiniteError
from lit_generative.training.run_logger import RunLogger
from lit_generative.utils.files import unused

DESCRIPTION = "Deep generative models. Beside the subcommands below, `train.py sample` and `export` take a checkpoint."
FREE = ("data_dir", "batch_size", "cache_dir", "download")  # what a run that goes on may change of its data
RUNS = "runs"  # the default of --trainer.default_root_dir, which loggers with this save_dir follow
CHOICES = {"model": (LightningModule, lit_generative.models), "data": (LightningDataModule, datamodules)}


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
        parser.add_argument("--name", type=str | None, help="Name of the run's folder (default: the recipe's).")
        text = "Go on with the newest run of this name, in its folder, if there is one; else begin (fit)."
        parser.add_argument("--resume", action="store_true", help=text)
        text = "Batches after which last.ckpt is written, beside once an epoch (fit)."
        parser.add_argument("--save_every", type=PositiveInt | None, help=text)
        text = "Weights to start from: a file, a folder, wandb://... or hf://..., or several with commas between them."
        parser.add_argument("--init_from", type=str | None, help=text)
        text = "Of checkpoints with averaged weights, start from those that were averaged."
        parser.add_argument("--init_from_raw", type=bool, default=False, help=text)
        text = "Allow that these weights fit less than half of the model."
        parser.add_argument("--init_from_partly", type=bool, default=False, help=text)
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
            name, classes = option(args, f"--{key}"), known_classes(base, package.__name__)
            known = [cls.__name__ for cls in classes if not inspect.isabstract(cls)]
            if name is not None and name.isidentifier() and name not in known:
                raise UserError(f"there is no {key} called {name}: choose from {', '.join(sorted(known))}")
        import_classes(named(args))  # a checkpoint may speak of them, and imports nothing itself
        path = option(args, "--ckpt_path")
        if path is not None and path not in ("best", "last", "hpc"):
            self.checkpoint = read_checkpoint(path)
            saved = {}
            for key, described in (("model", model_config), ("data", data_config)):
                mine, theirs = option(args, f"--{key}"), saved_class(self.checkpoint, key)
                # other data than those of training have nothing of their arguments
                if theirs is not None and (mine is None or mine.split(".")[-1] == theirs.split(".")[-1]):
                    saved[key] = described(self.checkpoint)
            args = [args[0], "--config", json.dumps(saved), *args[1:]]
        try:
            self.config = parser.parse_args(args[:1] + classes_first(args[1:]))
        except (KeyError, TypeError, ValueError) as error:  # of a damaged file
            raise UserError(f"a configuration cannot be read: {error}") from error
        config = self.config[self.config.subcommand]
        self.placed = config.name is not None or option(args, "--trainer.default_root_dir") is not None
        config.name = config.name or run_name(config)
        self.version: int | None = None
        if config.get("resume") and self.config.subcommand != "fit":
            raise UserError("--resume goes on with training: it is for fit")
        if config.get("resume"):
            config.resume = False  # it says how this process starts, and is no setting of the run
            self._resume(config)

        if self.checkpoint is not None and config.init_from is not None:
            rank_zero_info(f"{config.init_from} is not loaded: the weights are those of {config.ckpt_path}")
            config.init_from = None

    def _resume(self, config: Namespace) -> None:
        if config.ckpt_path is not None or config.checkpoint.dirpath is not None:
            raise UserError("--resume finds the checkpoint in the run's folder: leave out --ckpt_path and dirpath")
        runs = Path(config.trainer.default_root_dir).expanduser() / config.name
        path = newest_checkpoint(runs)
        if path is None:
            rank_zero_info(f"the newest run in {runs}, if any, has no checkpoint to go on from: beginning anew")
        else:
            self.checkpoint, config.ckpt_path = read_checkpoint(path), str(path)
            self._require_same_data(config, path)
            before, now = model_config(self.checkpoint)["init_args"], config.model.init_args
            changed = [
                f"{key} {now[key]}, before {value}"
                for key, value in before.items()
                # what was borrowed from a file is described in the checkpoint
                if key in now and not isinstance(value, dict) and not same(now[key], value)
            ]
            if changed:
                rank_zero_warn(f"the run goes on with other arguments of its model: {'; '.join(changed)}")
            for logger in as_list(config.trainer.logger):
                wandb_id = record(self.checkpoint).get("wandb_id")
                if getattr(logger, "class_path", "").endswith("WandbLogger") and wandb_id is not None:
                    logger.init_args.id = wandb_id  # Lightning goes on with a run of that name
            self.version = int(path.parents[1].name.removeprefix("version_"))
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # as it should be
            rank_zero_info(f"going on from {path}, step {self.checkpoint['global_step']}")

    def _require_same_data(self, config: Namespace, path: Path) -> None:
        assert self.checkpoint is not None
        before, now = data_config(self.checkpoint), config.data.as_dict()
        if before is None:
            return
        classes = [path.split(".")[-1] for path in (before["class_path"], now["class_path"])]
        changed = classes[:1] if classes[0] != classes[1] else []
        changed += [
            f"{key}={value}"
            for key, value in before["init_args"].items()
            if key in now["init_args"] and key not in FREE and not same(now["init_args"][key], value)
        ]
        if changed:
            raise UserError(
                f"the run of {path} was trained on other data ({', '.join(changed)}): give this one another --name, or "
                "the same --data arguments"
            )

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
        if config.init_from is not None:
            init_from(self.model, config.init_from, config.init_from_raw, config.init_from_partly)
        if self.checkpoint is not None:
            if self.subcommand == "fit":
                require_training_state(self.checkpoint)
            require_same_shapes(self.model, self.checkpoint, self.config[self.subcommand].ckpt_path)
            require_same_meaning(self.model, self.checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's folder, a CSV logger in front of any other, and the pictures that this model can give."""
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
        pictures = config.trainer.callbacks != [] and not config.trainer.barebones  # []: none
        if pictures and not any(isinstance(c, PICTURES) for c in callbacks):
            callbacks += [callback() for callback in default_pictures(self.model)]
            if self.subcommand == "test" and isinstance(self.model, Translates):
                callbacks += [TranslationScores()]
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
            # behind the best, whose own save_last writes only when there is a better one
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


PICTURES = (SampleGrid, ReconstructionGrid, TranslationGrid)


def default_pictures(model: Any) -> list[Any]:
    """What shows what a model can do, where the user has not chosen any of it."""
    if isinstance(model, Translates):
        return [TranslationGrid]
    pairs = ((Samples, SampleGrid), (Reconstructs, ReconstructionGrid))
    return [callback for protocol, callback in pairs if isinstance(model, protocol)]


def start_wandb(logger: WandbLogger) -> None:
    """Begin the W&B run; without its server, one on the disk, which `wandb sync` uploads later."""
    import wandb

    try:
        logger.experiment  # noqa: B018  (begins it)
    except (wandb.Error, OSError) as error:
        rank_zero_warn(f"W&B cannot be reached ({error}): the run is recorded offline, for `wandb sync`")
        wandb.teardown()  # it reads its settings once
        os.environ["WANDB_MODE"] = "offline"
        logger.experiment  # noqa: B018


def run_name(config: Namespace) -> str:
    """A run is named after its first recipe, fragments aside, or after its model and data."""
    for path in config.get("config") or []:
        # a configuration given as text has no name
        if path is not None and Path(str(path)).absolute().parent.name not in ("logger", "trainer"):
            return Path(str(path)).stem
    return "_".join(config[key].class_path.split(".")[-1].lower() for key in CHOICES)


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
        # a loss that is no number ends all processes, and one of them says so
        said = isinstance(error, NonFiniteError) and int(os.environ.get("LOCAL_RANK", 0)) > 0
        sys.exit(1 if said else f"error: {message} (--debug shows where)")


if __name__ == "__main__":
    main(sys.argv[1:])
