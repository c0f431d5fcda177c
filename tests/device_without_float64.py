"""A device that has no float64, as a Mac's GPU, on any machine: what lies on it is computed on the CPU.

Tensors on it say that their device is ``meta``, the one that torch has everywhere and that holds no numbers of its own.
Like MPS it refuses to hold float64 and to copy into it, and to compute with tensors of the CPU that are no scalars.
"""

import sys
from contextlib import contextmanager

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lit_generative.utils.precision import exact_device

DEVICE = torch.device("meta")


class OnDevice(torch.Tensor):
    @staticmethod
    def __new__(cls, held):
        if held.dtype == torch.float64:
            raise TypeError("Cannot convert a tensor to float64 on a device that does not support it")
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        self = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=DEVICE, **layout)
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [isinstance(x, OnDevice) for x in tensors]
    copies = operation in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if any(there) and not copies and any(x.ndim and not on for x, on in zip(tensors, there, strict=True)):
        indexed = operation in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
        if not (indexed and there[0]):  # by numbers of the CPU
            raise RuntimeError(f"{operation}: expected all tensors to be on the same device")
    device = kwargs.get("device")
    to_device = any(there) if device is None else torch.device(device) == DEVICE
    if (to_device or any(there)) and kwargs.get("dtype") == torch.float64:
        raise TypeError("Cannot convert a tensor to float64 on a device that does not support it")

    def held(x):
        if isinstance(x, torch.device):
            return torch.device("cpu")
        return x.held if isinstance(x, OnDevice) else x

    out = operation(*tree_map(held, args), **tree_map(held, kwargs))
    if operation._schema.name.endswith("_") and isinstance(args[0], torch.Tensor):  # in place
        return args[0]
    return tree_map(lambda x: OnDevice(x) if to_device and isinstance(x, torch.Tensor) else x, out)


class Device(TorchDispatchMode):
    """Sends what is made on the device, or copied to it, there."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


class FromNumbers(TorchFunctionMode):
    """`torch.tensor` copies numbers to a device before any mode of operations sees them: let it be a copy of ours."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            return function(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


@contextmanager
def device_without_float64(monkeypatch):
    """In this block the device is there; `strategy` trains on it."""
    module = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE.type])
    autocast = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **rest: autocast("cpu" if kind == DEVICE.type else kind, **rest)
    )
    exact_device.cache_clear()
    with FromNumbers(), Device():
        yield
    exact_device.cache_clear()


class Accelerator(CPUAccelerator):
    def setup_device(self, device):
        """It is no CPU."""


def strategy():
    return SingleDeviceStrategy(DEVICE, Accelerator())
