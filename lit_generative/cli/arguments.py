"""What stands on the command line, before and beside what jsonargparse makes of it."""

import datetime
import inspect
from argparse import ArgumentParser
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_generative.checkpoints.load import known_classes
from lit_generative.errors import UserError

TRAINER_TYPES: dict[str, Any] = {  # narrower than Lightning's, under which 1 may become 1.0, or a run fail on its way
    **{f"limit_{stage}_batches": int | float | None for stage in ("train", "val", "test", "predict")},
    "accumulate_grad_batches": PositiveInt,
    "check_val_every_n_epoch": PositiveInt | None,
    "gradient_clip_val": NonNegativeFloat | None,
    "log_every_n_steps": NonNegativeInt | None,
    "val_check_interval": PositiveInt | PositiveFloat | datetime.timedelta | dict[str, int] | str | None,
}


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """What a run takes beside model, data and trainer."""
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
    # classes stay names, which the model takes; see `Optimizes`
    options: Any = {"required": False, "instantiate": False, "fail_untyped": False}
    text = "Optimizer in place of the model's, one for each network; without lr it has the model's rates (fit)."
    parser.add_subclass_arguments(Optimizer, "optimizer", skip={"params"}, help=text, **options)
    text = "Learning rate schedule in place of the model's (fit)."
    parser.add_subclass_arguments(LRScheduler, "lr_scheduler", skip={"optimizer", "last_epoch"}, help=text, **options)
    text = "Whether that schedule moves every epoch or every step, which is the unit of its arguments."
    parser.add_argument("--lr_scheduler_interval", type=Literal["epoch", "step"], default="epoch", help=text)


def choose_optimization(model: Any, config: Namespace) -> None:
    """Hand the optimizer and the schedule of a configuration, if any, to the model."""
    if config.optimizer is not None:
        arguments = config.optimizer.get("init_args", Namespace()).as_dict()
        model.use_optimizer(config.optimizer.class_path, **arguments)
    if config.lr_scheduler is not None:
        arguments = config.lr_scheduler.get("init_args", Namespace()).as_dict()
        model.use_lr_scheduler(config.lr_scheduler.class_path, config.lr_scheduler_interval, **arguments)


def narrow_trainer_types(parser: ArgumentParser) -> None:
    """Give the arguments ``trainer.*`` of a parser the types `TRAINER_TYPES`."""
    for action in parser._actions:
        name = action.dest.removeprefix("trainer.")
        if name in TRAINER_TYPES:
            action._typehint = TRAINER_TYPES[name]  # type: ignore[attr-defined]  # jsonargparse's


def require_values(cls: type, arguments: Mapping[str, Any]) -> None:
    """Raise a UserError if one of these is None whose type has no None: jsonargparse lets ``null`` pass everywhere.

    Only classes of these packages, whose types are checked, are held to it.
    """
    if cls.__module__.partition(".")[0] not in ("callbacks", "datamodules", "lit_generative"):
        return
    types: dict[str, Any] = {}
    for parent in reversed(cls.__mro__):  # which take what is not their own by ``**``
        types |= getattr(vars(parent).get("__init__"), "__annotations__", {})
    for name, value in arguments.items():
        if value is None and name in types and types[name] is not Any and NoneType not in get_args(types[name]):
            raise UserError(f"{cls.__name__}: {name} is null, but needs a value")


def option(args: list[str], flag: str) -> str | None:
    """The value of ``--flag value`` or ``--flag=value``, the last one if repeated."""
    values = [a.split("=", 1)[1] for a in args if a.startswith(f"{flag}=")]
    values += [b for a, b in pairwise(args) if a == flag]
    return values[-1] if values else None


def require_known(args: list[str], key: str, base: type, package: str) -> None:
    """Raise a ValueError if ``--key Name`` names no class of a package, which says what there is."""
    name, classes = option(args, f"--{key}"), known_classes(base, package)
    known = {cls.__name__ for cls in classes if not inspect.isabstract(cls) and not cls.__name__.startswith("_")}
    if name is not None and name.isidentifier() and name not in known:
        raise UserError(f"there is no {key} called {name}: choose from {', '.join(sorted(known))}")


def gives(args: list[str], key: str, argument: str) -> bool:
    """Whether the command line or a recipe has this argument of the class that ``key`` names."""
    recipes = [config.get(key) for config in named(args) if isinstance(config, dict)]
    found = [recipe["init_args"] for recipe in recipes if isinstance(recipe, dict) and recipe.get("init_args")]
    return option(args, f"--{key}.{argument}") is not None or any(argument in init_args for init_args in found)


def named(args: list[str]) -> list[Any]:
    """What may name classes: the values of arguments and what recipes hold, where these are lists or mappings."""
    found: list[Any] = []
    for flag, value in [*pairwise(args), *(arg.split("=", 1) for arg in args if "=" in arg)]:
        if flag in ("--model", "--data") or flag.endswith(".class_path"):
            found.append({"class_path": value})
        with suppress(OSError, yaml.YAMLError):  # the parser says what is wrong
            try:
                recipe = value.endswith((".yaml", ".yml", ".json"))
                found.append(yaml.safe_load(Path(value).read_text() if recipe else value))
            except UnicodeDecodeError as error:
                raise UserError(f"{value} is not UTF-8 text, from its byte {error.start} on") from error
            except ValueError:  # of yaml, such as a date that does not exist
                continue
    return [config for config in found if isinstance(config, dict | list)]


def classes_first(args: list[str]) -> list[str]:
    """Recipes, then the names of classes, then the rest: an argument cannot be read before its class is known."""
    first: dict[str, list[str]] = {"--config": [], "--model": [], "--data": []}
    rest, remaining = [], iter(args)
    for arg in remaining:
        flag, equals, value = arg.partition("=")
        flag = "--config" if flag == "-c" else flag
        if flag in first:
            first[flag] += [flag, value if equals else next(remaining, "")]
        else:
            rest.append(arg)
    return [*first["--config"], *first["--model"], *first["--data"], *rest]


def same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal; a tuple equals the list that a configuration has in its place."""
    a, b = (list(value) if isinstance(value, tuple) else value for value in (a, b))
    return bool(a == b)


def as_list(value: Any) -> list[Any]:
    """What the Trainer takes as one object, several or a default, as a list of objects."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
