"""The types of numbers: what must be exact, where that can be kept, and what a network takes."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn


@functools.cache
def exact_device(device: torch.device) -> torch.device:
    """Where float64 is kept for what lies on ``device``: there, or on the CPU if it has none, as a Mac's GPU."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):  # of MPS, and of others without float64
        return torch.device("cpu")
    return device


def exact(x: Tensor) -> Tensor:
    """``x`` in float64, on its own device or on the CPU, see `exact_device`."""
    return x.to(exact_device(x.device)).to(torch.float64)  # in two steps: MPS converts before it copies


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision up to float32, where sums over pixels and exponentials need it; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def for_weights(x: Tensor, network: nn.Module) -> Tensor:
    """``x`` in the dtype of a network's weights, if it has any."""
    return x.to(next((p.dtype for p in network.parameters()), x.dtype))


Move = Callable[[Tensor], Tensor]


def device_only(move: Move, now: torch.device) -> Move:
    """What float64 tensors on ``now`` do where ``Module._apply`` is given ``move``: their dtype stays.

    They follow to the new device, or to the CPU, see `exact_device`.
    """
    device = exact_device(move(torch.zeros((), device=now)).device)
    return lambda x: x.to(device)
