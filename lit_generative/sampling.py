"""Sampling that fits into memory."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


def draw(model: Any, n: int, c: Tensor | None = None, **options: Any) -> Tensor:
    """``model.sample(n, c, **options)``, in halves where the device's memory does not hold so many at a time.

    Raises:
        torch.OutOfMemoryError: There is no room for one.
    """
    try:
        return model.sample(n, c, **options)
    except torch.OutOfMemoryError:
        if n < 2:
            raise
    # outside of the handler, whose traceback would keep what was allocated
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = n // 2
    rank_zero_warn(f"no memory for {n} samples at a time: going on with {half}; their noise is another")
    parts = [(half, None if c is None else c[:half]), (n - half, None if c is None else c[half:])]
    return torch.cat([draw(model, count, part, **options) for count, part in parts])
