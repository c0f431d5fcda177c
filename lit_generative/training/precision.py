"""Models that run in the Trainer's precision, or say which other to choose."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.utils.precision import exact_device


class AnyPrecision(LightningModule):
    """A model that runs in the Trainer's ``precision``, or says which other to choose."""

    needs_float32: str = ""  # why half precision throughout would not do; empty: it does

    def noise(self, *shape: int) -> Tensor:
        """Draws of N(0, I) of this shape, on the model's device and in the dtype of its weights."""
        return torch.randn(shape, dtype=next(self.parameters()).dtype, device=self.device)

    def require_precision(self) -> None:
        """Raise a ValueError if this run's precision does not suit the model or its device."""
        if self.trainer.precision == "64-true":
            device = self.trainer.strategy.root_device
            if exact_device(device) != device:
                raise UserError(f"there is no float64 on {device.type}: choose --trainer.precision 32-true")
        if self.needs_float32:
            self.require_float32(self.needs_float32)

    def require_float32(self, why: str, instead_of: Sequence[str] = ("16-true", "bf16-true")) -> None:
        """Raise a ValueError if this run keeps numbers in half precision throughout."""
        if self.trainer.precision in instead_of:
            raise UserError(f"{type(self).__name__} cannot run in {self.trainer.precision}: {why}; choose bf16-mixed")
