"""Sampling that fits into memory."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


def no_memory(error: RuntimeError) -> bool:
    """Whether a device, or the CPU, of which torch has no error of its own, has no memory for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def draw(model: Any, n: int, c: Tensor | None = None, **options: Any) -> Tensor:
    """``model.sample(n, c, **options)``, in halves where the device's memory does not hold so many at a time.

    Raises:
        RuntimeError: There is no room for one.
    """
    try:
        return model.sample(n, c, **options)
    except RuntimeError as error:
        if n < 2 or not no_memory(error):
            raise
    # outside of the handler, whose traceback would keep what was allocated
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = n // 2
    rank_zero_warn(f"no memory for {n} samples at a time: going on with {half}; their noise is another")
    parts = [(half, None if c is None else c[:half]), (n - half, None if c is None else c[half:])]
    return torch.cat([draw(model, count, part, **options) for count, part in parts])
