"""Sampling that fits into memory, and the labels that samples of a class-conditional model are drawn for."""

import inspect
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_generative.errors import UserError, UserTypeError
from lit_generative.protocols import HasLabels


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
    rank_zero_warn(f"no memory for {n} samples at a time: going on with {half} at a time, whose noise differs")
    parts = [(half, None if c is None else c[:half]), (n - half, None if c is None else c[half:])]
    return torch.cat([draw(model, count, part, **options) for count, part in parts])


class Conditions:
    """What samples of a model are conditioned on: labels, where it knows classes, and guidance towards them.

    Labels are drawn from the frequencies of the classes among all training images. Samples are then of the same model
    as ``log_prob(x, c)`` of images with their labels. A model that knows no classes is sampled without conditions.

    Args:
        user: Whose samples these are; errors name it.
        model: A model that can `sample`; it knows ``model.classes`` classes, none without this attribute.
        data: The datamodule it is trained on.
        guidance: Of classifier-free guidance, an option of the model's ``sample``; 0: none.

    Raises:
        TypeError: The labels of the data are not known.
        ValueError: The model cannot be guided, or knows fewer classes than the data have.
    """

    def __init__(self, user: object, model: Any, data: Any, guidance: float = 0.0) -> None:
        name, known = type(user).__name__, getattr(model, "classes", 0)
        if guidance < 0:
            raise UserError(f"{name}: guidance must be >= 0, got {guidance:g}")
        parameters = inspect.signature(model.sample).parameters if guidance else {}
        takes = "guidance" in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())
        if guidance and not (known and takes):
            raise UserError(f"{name}: {type(model).__name__} cannot be guided towards a class: leave guidance at 0")
        self.guidance, self.frequencies = guidance, None
        if known:
            if not isinstance(data, HasLabels):
                raise UserTypeError(
                    f"{name} draws labels for {type(model).__name__}, which has {known} classes, from the class "
                    f"frequencies of the training data, but {type(data).__name__} does not give its labels "
                    "(`labels_of`)"
                )
            counts = torch.bincount(data.labels_of("train"))
            if len(counts) > known:
                raise UserError(f"{type(model).__name__} has {known} classes, but the data have {len(counts)}")
            self.frequencies = counts / counts.sum()

    def labels(self, n: int, device: torch.device) -> Tensor | None:
        """``n`` labels int64, drawn on the CPU; None for a model that knows no classes."""
        return None if self.frequencies is None else torch.multinomial(self.frequencies, n, replacement=True).to(device)

    def draw(self, model: Any, n: int, c: Tensor | None = None) -> Tensor:
        """``n`` samples ``(n, C, H, W)`` in [0, 1], of labels ``c`` or of drawn ones; see `draw`."""
        options = {"guidance": self.guidance} if self.guidance else {}
        return draw(model, n, self.labels(n, model.device) if c is None else c, **options)

    @property
    def guided(self) -> str:
        """The guidance, for a protocol; empty for a model that knows no classes."""
        if self.frequencies is None:
            return ""
        return f"guidance {self.guidance:g}, which nll does not include" if self.guidance else "no guidance"

    def describe(self) -> str:
        """Labels and guidance, for a protocol; empty for a model that knows no classes."""
        if self.frequencies is None:
            return ""
        return f"labels drawn from the class frequencies of the training images, {self.guided}"
