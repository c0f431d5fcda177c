"""What a checkpoint may hold: tensors and plain types, so that it can be loaded without executing anything."""

import copy
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
    """Hyper-parameters of plain types, whatever the constructor was given."""

    def _set_hparams(self, hp: Any) -> None:
        super()._set_hparams(plain(self._to_hparams_dict(hp), tensors=False))
