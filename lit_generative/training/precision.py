"""Models that run in the Trainer's precision, or say which other to choose."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.utils.precision import exact_device


def computes_in_bfloat16() -> bool | None:
    """Whether the CPU has instructions for products in bfloat16; None if torch is too old to say."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:
        return None
    able = capabilities()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class AnyPrecision(LightningModule):
    """A model that runs in the Trainer's ``precision``, or says which other to choose."""

    needs_float32: str = ""  # why half precision throughout would not do; empty: it does
    matmul_precision: str = "high"  # of float32 products on a GPU in training: TensorFloat-32; exact: highest
    _quick_products = False

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

    def start_products(self) -> None:
        """Multiply float32 matrices on a GPU by ``matmul_precision``, unless torch is set otherwise already."""
        if self.device.type == "cuda" and torch.get_float32_matmul_precision() == "highest":
            torch.set_float32_matmul_precision(self.matmul_precision)
            self._quick_products = True

    def end_products(self) -> None:
        """Multiply exactly again, unless it was not `start_products` that changed it."""
        if self._quick_products:
            torch.set_float32_matmul_precision("highest")
            self._quick_products = False

    def advise_precision(self) -> None:
        """Say where another precision would be faster on this processor."""
        if self.device.type != "cpu":
            return
        quick, precision = computes_in_bfloat16(), self.trainer.precision
        if quick and precision == "32-true":
            rank_zero_info("this processor computes in bfloat16: --trainer.precision bf16-mixed is usually faster")
        if quick is False and precision in ("bf16-mixed", "bf16-true"):
            rank_zero_info("this processor only emulates bfloat16, slowly: --trainer.precision 32-true is faster")

    def require_float32(self, why: str, instead_of: Sequence[str] = ("16-true", "bf16-true")) -> None:
        """Raise a ValueError if this run keeps numbers in half precision throughout."""
        if self.trainer.precision in instead_of:
            raise UserError(f"{type(self).__name__} cannot run in {self.trainer.precision}: {why}; choose bf16-mixed")
