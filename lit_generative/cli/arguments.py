"""What stands on the command line, before and beside what jsonargparse makes of it."""

import datetime
from argparse import ArgumentParser
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lit_generative.errors import UserError

TRAINER_TYPES: dict[str, Any] = {  # narrower than Lightning's, under which 1 may become 1.0, or a run fail on its way
    **{f"limit_{stage}_batches": int | float | None for stage in ("train", "val", "test", "predict")},
    "accumulate_grad_batches": PositiveInt,
    "check_val_every_n_epoch": PositiveInt | None,
    "gradient_clip_val": NonNegativeFloat | None,
    "log_every_n_steps": NonNegativeInt | None,
    "val_check_interval": PositiveInt | PositiveFloat | datetime.timedelta | dict[str, int] | str | None,
}


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
