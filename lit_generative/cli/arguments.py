"""Arguments of a run, and helpers that read the command line before jsonargparse parses it."""

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

# narrower than Lightning's, which may turn 1 into 1.0, or accept values with which a run fails later
TRAINER_TYPES: dict[str, Any] = {
    **{f"limit_{stage}_batches": int | float | None for stage in ("train", "val", "test", "predict")},
    "accumulate_grad_batches": PositiveInt,
    "check_val_every_n_epoch": PositiveInt | None,
    "gradient_clip_val": NonNegativeFloat | None,
    "log_every_n_steps": NonNegativeInt | None,
    "val_check_interval": PositiveInt | PositiveFloat | datetime.timedelta | dict[str, int] | str | None,
}


CompileMode = Literal["default", "reduce-overhead", "max-autotune"]


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """Add the arguments of a run other than model, data and trainer."""
    parser.add_argument("--name", type=str | None, help="Name of the run's folder (default: the recipe's).")
    text = "Continue the newest run of this name, in its folder; start a new one if there is none (fit)."
    parser.add_argument("--resume", action="store_true", help=text)
    text = "Write last.ckpt every so many batches, in addition to once an epoch (fit)."
    parser.add_argument("--save_every", type=PositiveInt | None, help=text)
    text = (
        "Compile training steps (fit) or likelihoods (test), a minute the first time; a mode of torch.compile, on GPUs."
    )
    parser.add_argument("--compile", type=bool | CompileMode, nargs="?", const=True, default=False, help=text)
    text = "Weights to start from: a file, a folder, wandb://... or hf://..., or several, separated by commas."
    parser.add_argument("--init_from", type=str | None, help=text)
    text = "Start from a checkpoint's raw weights rather than their average."
    parser.add_argument("--init_from_raw", type=bool, default=False, help=text)
    text = "Accept weights that fit less than half of the model."
    parser.add_argument("--init_from_partly", type=bool, default=False, help=text)
    # the model takes the classes' names and creates them itself
    options: Any = {"required": False, "instantiate": False, "fail_untyped": False}
    text = "Optimizer to replace the model's, one per network; lr defaults to the model's learning rates (fit)."
    parser.add_subclass_arguments(Optimizer, "optimizer", skip={"params"}, help=text, **options)
    text = "Learning rate schedule to replace the model's (fit)."
    parser.add_subclass_arguments(LRScheduler, "lr_scheduler", skip={"optimizer", "last_epoch"}, help=text, **options)
    text = "How often that schedule steps, which is also the unit of its arguments."
    parser.add_argument("--lr_scheduler_interval", type=Literal["epoch", "step"], default="epoch", help=text)


def narrow_trainer_types(parser: ArgumentParser) -> None:
    """Give the parser's ``trainer.*`` arguments the types of `TRAINER_TYPES`."""
    for action in parser._actions:
        name = action.dest.removeprefix("trainer.")
        if name in TRAINER_TYPES:
            action._typehint = TRAINER_TYPES[name]  # type: ignore[attr-defined]  # jsonargparse's


def require_values(cls: type, arguments: Mapping[str, Any]) -> None:
    """Raise a UserError if an argument is None but its type is not optional: jsonargparse accepts ``null`` everywhere.

    Only classes of this repository are checked; the annotations of others may be imprecise.
    """
    if cls.__module__.partition(".")[0] not in ("callbacks", "datamodules", "lit_generative"):
        return
    types: dict[str, Any] = {}
    for parent in reversed(cls.__mro__):  # they receive the rest through ``**``
        types |= getattr(vars(parent).get("__init__"), "__annotations__", {})
    for name, value in arguments.items():
        if value is None and name in types and types[name] is not Any and NoneType not in get_args(types[name]):
            raise UserError(f"{cls.__name__}: {name} must have a value, got null")


def option(args: list[str], flag: str) -> str | None:
    """The value of ``--flag=value`` or ``--flag value``; the last one if repeated, None if absent."""
    values = [a.split("=", 1)[1] for a in args if a.startswith(f"{flag}=")]
    values += [b for a, b in pairwise(args) if a == flag]
    return values[-1] if values else None


def require_known(args: list[str], key: str, base: type, package: str) -> None:
    """Raise a UserError that lists the package's classes if ``--key Name`` names none of them."""
    name, classes = option(args, f"--{key}"), known_classes(base, package)
    known = {cls.__name__ for cls in classes if not inspect.isabstract(cls) and not cls.__name__.startswith("_")}
    if name is not None and name.isidentifier() and name not in known:
        raise UserError(f"there is no {key} called {name}: choose from {', '.join(sorted(known))}")


def is_given(args: list[str], key: str, argument: str) -> bool:
    """Whether the command line or a recipe sets this argument of the class that ``key`` names."""
    if option(args, f"--{key}.{argument}") is not None:
        return True
    choices = [config.get(key) for config in configurations(args) if isinstance(config, dict)]
    return any(argument in (choice.get("init_args") or {}) for choice in choices if isinstance(choice, dict))


def configurations(args: list[str]) -> list[Any]:
    """All lists and mappings among the arguments and in the recipes that they name; these may name classes."""
    found: list[Any] = []
    for flag, value in [*pairwise(args), *(arg.split("=", 1) for arg in args if "=" in arg)]:
        if flag in ("--model", "--data") or flag.endswith(".class_path"):
            found.append({"class_path": value})
        with suppress(OSError, yaml.YAMLError):  # the parser reports these
            try:
                recipe = value.endswith((".yaml", ".yml", ".json"))
                found.append(yaml.safe_load(Path(value).read_text() if recipe else value))
            except UnicodeDecodeError as error:
                raise UserError(f"{value} is not UTF-8 text, from byte {error.start} on") from error
            except ValueError:  # from yaml, such as a date that does not exist
                continue
    return [config for config in found if isinstance(config, dict | list)]


def classes_first(args: list[str]) -> list[str]:
    """Reorder: recipes, then class names, then the rest, since an argument cannot be parsed before its class."""
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


def run_name(config: Namespace) -> str:
    """The run's default name: that of its first recipe, fragments aside, or of its model and data."""
    for path in config.get("config") or []:
        # None: a configuration given as text, which has no name
        if path is not None and Path(str(path)).absolute().parent.name not in ("logger", "trainer"):
            return Path(str(path)).stem
    return "_".join(config[key].class_path.split(".")[-1].lower() for key in ("model", "data"))


def same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal; a tuple equals a list, since YAML has only lists."""
    a, b = (list(value) if isinstance(value, tuple) else value for value in (a, b))
    return bool(a == b)


def as_list(value: Any) -> list[Any]:
    """A Trainer argument that may be one object, several, or a default (None or a bool), as a list of objects."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
