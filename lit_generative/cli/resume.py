"""Configuration from a checkpoint: one that the command line names, or the newest of a run to continue."""

import json
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_generative.checkpoints.last import newest_checkpoint
from lit_generative.checkpoints.load import data_config, model_config, read_checkpoint, saved_class
from lit_generative.checkpoints.record import record
from lit_generative.cli.arguments import as_list, option, same
from lit_generative.errors import UserError

# data arguments that may change when a run is resumed
CHANGEABLE = ("data_dir", "batch_size", "cache_dir", "download")


def with_checkpoint(args: list[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """The checkpoint of ``--ckpt_path``, if any, and the arguments with its configuration put before them."""
    path = option(args, "--ckpt_path")
    if path is None or path in ("best", "last", "hpc"):
        return None, args
    checkpoint = read_checkpoint(path)
    saved: dict[str, Any] = {}
    for key, described in (("model", model_config), ("data", data_config)):
        given, trained = option(args, f"--{key}"), saved_class(checkpoint, key)
        # the saved arguments mean nothing to another class, as when a model is tested on other data
        if trained is not None and (given is None or given.split(".")[-1] == trained.split(".")[-1]):
            saved[key] = described(checkpoint)
    if args[0] == "fit":
        for key, value in record(checkpoint).get("optimization", {}).items():
            if option(args, f"--{key}") is None:
                saved[key] = {name: value[name] for name in ("class_path", "init_args")}
                saved |= {"lr_scheduler_interval": value["interval"]} if key == "lr_scheduler" else {}
    return checkpoint, [args[0], "--config", json.dumps(saved), *args[1:]]


def resume(config: Namespace) -> tuple[dict[str, Any] | None, int | None]:
    """Set a configuration to continue its run from the newest checkpoint; return that and the run's version.

    Both are None if there is no checkpoint yet: a new run starts.

    Raises:
        UserError: The configuration names a checkpoint, or data other than the run's.
    """
    if config.ckpt_path is not None or config.checkpoint.dirpath is not None:
        raise UserError("--resume finds the checkpoint in the run's folder: leave out --ckpt_path and dirpath")
    runs = Path(config.trainer.default_root_dir).expanduser() / config.name
    path = newest_checkpoint(runs)
    if path is None:
        rank_zero_info(f"the newest run in {runs}, if any, has no checkpoint to continue from: starting a new run")
        return None, None
    checkpoint, config.ckpt_path = read_checkpoint(path), str(path)
    require_same_data(checkpoint, config, path)
    before, now = model_config(checkpoint)["init_args"], config.model.init_args
    changed = [
        f"{key} {now[key]}, was {value}"
        for key, value in before.items()
        # a dict describes an autoencoder, which the command line names by its file
        if key in now and not isinstance(value, dict) and not same(now[key], value)
    ]
    if changed:
        rank_zero_warn(f"the resumed run changes arguments of its model: {'; '.join(changed)}")
    for logger in as_list(config.trainer.logger):
        wandb_id = record(checkpoint).get("wandb_id")
        if getattr(logger, "class_path", "").endswith("WandbLogger") and wandb_id is not None:
            logger.init_args.id = wandb_id  # Lightning then continues that W&B run
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # expected here
    rank_zero_info(f"continuing from {path}, step {checkpoint['global_step']}")
    return checkpoint, int(path.parents[1].name.removeprefix("version_"))


def require_same_data(checkpoint: dict[str, Any], config: Namespace, path: Path) -> None:
    """Raise a UserError if the checkpoint's run was trained on data other than the configuration's."""
    before, now = data_config(checkpoint), config.data.as_dict()
    if before is None:
        return
    classes = [path.split(".")[-1] for path in (before["class_path"], now["class_path"])]
    changed = classes[:1] if classes[0] != classes[1] else []
    changed += [
        f"{key}={value}"
        for key, value in before["init_args"].items()
        if key in now["init_args"] and key not in CHANGEABLE and not same(now["init_args"][key], value)
    ]
    if changed:
        raise UserError(
            f"the run of {path} was trained on other data ({', '.join(changed)}): choose another --name, or "
            "give the same --data arguments"
        )
