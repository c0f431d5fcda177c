r"""Noise schedules of a Gaussian diffusion, and its posterior.

    q(x_t|x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I),   t = 0..T,  alpha_bar_0 = 1

t runs from 1 to T as in Ho et al. (2020); t = 0 is data. All is written for any two times s < t. A ``denoise(x_t, t)``
estimates E[x_0|x_t] ``(B, ...)`` of noisy data ``(B, ...)`` at times ``(B,)`` int64.
"""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from lit_generative.errors import UserError
from lit_generative.utils.precision import Move, device_only


class Schedule(nn.Module):
    """alpha_bar_0 = 1 > ... > alpha_bar_T of beta_1..T ``(T,)``, float64 in any model, not in the state dict."""

    alpha_bar: Tensor  # (T + 1,)

    def __init__(self, beta: Tensor) -> None:
        super().__init__()
        if beta.ndim != 1 or len(beta) < 2 or not ((beta > 0) & (beta < 1)).all():
            raise UserError("a schedule needs at least two values of beta between 0 and 1")
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta.double(), 0)])
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)

    def _apply(self, fn: Move, recurse: bool = True) -> Self:
        return super()._apply(device_only(fn, self.alpha_bar.device), recurse)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    def at(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha_bar_t of times ``(B,)``, float64, in a shape that multiplies ``like`` ``(B, ...)``."""
        return self.alpha_bar[t.to(self.alpha_bar.device)].view(-1, *[1] * (like.ndim - 1))

    def diffuse(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """A draw x_t ~ q(x_t|x_0) made of ``eps`` ~ N(0, I) (Ho et al., 2020, Eq. 4)."""
        a = self.at(t, x_0)
        return a.sqrt().to(x_0) * x_0 + (1 - a).sqrt().to(x_0) * eps


def linear(steps: int) -> Schedule:
    """beta from 1e-4 to 0.02 (Ho et al., 2020, Section 4), scaled so that any number of steps ends in as much noise."""
    return Schedule(torch.linspace(1e-4, 0.02, steps, dtype=torch.float64).mul(1000 / steps).clamp(max=0.999))


def cosine(steps: int, s: float = 0.008) -> Schedule:
    """alpha_bar_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2), beta <= 0.999 (Nichol & Dhariwal, 2021)."""
    f = torch.cos((torch.linspace(0, 1, steps + 1, dtype=torch.float64) + s) / (1 + s) * math.pi / 2).square()
    return Schedule((1 - f[1:] / f[:-1]).clamp(max=0.999))


SCHEDULES: dict[str, Callable[[int], Schedule]] = {"linear": linear, "cosine": cosine}


def posterior(a_s: Any, a_t: Any) -> tuple[Any, Any, Any]:
    """q(x_s|x_t, x_0) = N(c_0 x_0 + c_t x_t, v I), s < t: c_0, c_t, v (Ho et al., 2020, Eq. 7, for any two times)."""
    alpha = a_t / a_s
    c_0 = a_s**0.5 * (1 - alpha) / (1 - a_t)
    c_t = alpha**0.5 * (1 - a_s) / (1 - a_t)
    return c_0, c_t, (1 - alpha) * (1 - a_s) / (1 - a_t)
