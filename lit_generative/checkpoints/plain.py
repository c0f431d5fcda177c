"""What a checkpoint may hold: tensors and plain types, so that it can be loaded without executing anything."""

import copy
import inspect
from pathlib import PurePath
from typing import Any

import numpy as np
from lightning.pytorch.core.mixins import HyperparametersMixin
from torch import Tensor


def plain(value: Any, tensors: bool = True) -> Any:
    """``value`` with the numpy numbers and arrays and the paths in it as Python's numbers, lists and strings.

    Args:
        tensors: Whether tensors stay; else they become numbers and lists, too.
    """
    if isinstance(value, np.generic | np.ndarray) or (isinstance(value, Tensor) and not tensors):
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, dict):
        same_kind = copy.copy(value)  # an OrderedDict, a Counter
        for key, entry in value.items():
            same_kind[key] = plain(entry, tensors)
        return same_kind
    if type(value) in (list, tuple):
        return type(value)(plain(entry, tensors) for entry in value)
    return value


class PlainArguments(HyperparametersMixin):
    """Hyper-parameters of plain types, whatever the constructor was given, that build the object again.

    What a class hands to its parents, and does not take itself, is not among them.
    """

    def _set_hparams(self, hp: Any) -> None:
        given = self._to_hparams_dict(hp)
        handed_on = {name for cls in type(self).__mro__ for name in inspect.signature(cls.__init__).parameters}  # type: ignore[misc]
        handed_on -= accepted(type(self))
        super()._set_hparams(plain({k: v for k, v in given.items() if k not in handed_on}, tensors=False))


def accepted(cls: type) -> set[str]:
    """The names of the arguments of a class, those that it hands to its parents included."""
    names: set[str] = set()
    for parent in cls.__mro__:
        if "__init__" in vars(parent):
            parameters = inspect.signature(parent.__init__).parameters.values()  # type: ignore[misc]
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if all(p.kind != p.VAR_KEYWORD for p in parameters):
                break
    return names
