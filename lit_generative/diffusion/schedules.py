r"""Noise schedules of a Gaussian diffusion, and its posterior.

    q(x_t|x_0) = N(alpha_t x_0, sigma_t^2 I),   t = 0 is data: alpha_0 = 1, sigma_0 = 0

In the notation of Ho et al. (2020) alpha_t^2 = alpha_bar_t and sigma_t^2 = 1 - alpha_bar_t, with t = 1..T.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from lit_generative.errors import UserError
from lit_generative.utils.precision import Move, device_only

Pair = tuple[Any, Any]  # alpha_t, sigma_t: both numbers, or both tensors


class Schedule(ABC, nn.Module):
    """alpha_t and sigma_t at the times of a diffusion; time may be discrete or continuous."""

    @abstractmethod
    def forward(self, t: float) -> tuple[float, float]:
        """alpha_t and sigma_t of one time."""

    @abstractmethod
    def at(self, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t of times ``(B,)`` or of one time, in a shape and dtype to multiply ``like``."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The times below which a fraction ``u`` ``(B,)`` in [0, 1) of all times lies."""

    @abstractmethod
    def timesteps(self, n: int, power: float = 1.0, start: float = 1.0) -> list[Any]:
        """``n`` falling times for a sampler, see `power_timesteps`; fewer if there are not so many below ``start``.

        ``start`` is a fraction of all times.
        """

    def diffuse(self, x_0: Tensor, t: Tensor | float, eps: Tensor) -> Tensor:
        """A draw x_t ~ q(x_t|x_0) made of ``eps`` ~ N(0, I) (Ho et al., 2020, Eq. 4)."""
        alpha, sigma = self.at(t, x_0)
        return alpha * x_0 + sigma * eps


class DiscreteSchedule(Schedule):
    """The schedule of beta_1..T ``(T,)``; alpha_bar is kept in float64 in any model, and is not in the state dict."""

    alpha_bar: Tensor  # (T + 1,), alpha_bar_0 = 1

    def __init__(self, beta: Tensor) -> None:
        super().__init__()
        if beta.ndim != 1 or len(beta) < 2 or not ((beta > 0) & (beta < 1)).all():
            raise UserError("a schedule needs at least two values of beta between 0 and 1")
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta.double(), 0)])
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)
        self._alpha_bar: list[float] = alpha_bar.tolist()  # to read without waiting for the device
        a = alpha_bar[1:].numpy()
        self._log_ratios = (np.log1p(-a) - np.log(a)) / 2

    def _apply(self, fn: Move, recurse: bool = True) -> Self:
        return super()._apply(device_only(fn, self.alpha_bar.device), recurse)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    def forward(self, t: float) -> tuple[float, float]:
        alpha_bar = self._alpha_bar[int(t)]
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def at(self, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t, device=self.alpha_bar.device)
        alpha_bar = self.alpha_bar[t].view(-1, *[1] * (like.ndim - 1))
        return alpha_bar.sqrt().to(like), (1 - alpha_bar).sqrt().to(like)

    def ratio(self, t: int) -> float:
        """sigma_t / alpha_t."""
        alpha, sigma = self(t)
        return sigma / alpha

    def time_of(self, ratio: float) -> float:
        """The real time in [1, T] at which sigma / alpha is ``ratio``, its logarithm linear between integers."""
        return float(np.interp(math.log(ratio), self._log_ratios, np.arange(1, self.steps + 1)))

    def quantile(self, u: Tensor) -> Tensor:
        return 1 + (u * self.steps).long().clamp(max=self.steps - 1)

    def timesteps(self, n: int, power: float = 1.0, start: float = 1.0) -> list[int]:
        if start == 1:
            return power_timesteps(self.steps, n, power)
        first = max(1, round(self.steps * start))
        return power_timesteps(first, min(n, first), power)


def linear(steps: int) -> DiscreteSchedule:
    """beta from 1e-4 to 0.02 (Ho et al., 2020, Section 4), scaled so that any number of steps ends in as much noise."""
    return DiscreteSchedule(torch.linspace(1e-4, 0.02, steps, dtype=torch.float64).mul(1000 / steps).clamp(max=0.999))


def cosine(steps: int, s: float = 0.008) -> DiscreteSchedule:
    """alpha_bar_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2), beta <= 0.999 (Nichol & Dhariwal, 2021)."""
    f = torch.cos((torch.linspace(0, 1, steps + 1, dtype=torch.float64) + s) / (1 + s) * math.pi / 2).square()
    return DiscreteSchedule((1 - f[1:] / f[:-1]).clamp(max=0.999))


SCHEDULES: dict[str, Callable[[int], DiscreteSchedule]] = {"linear": linear, "cosine": cosine}


def posterior(s: Pair, t: Pair) -> tuple[Any, Any, Any, Any]:
    """q(x_s|x_t, x_0) = N(c_0 x_0 + c_t x_t, v I) of two times s < t, each as (alpha, sigma).

    Returns:
        c_0, c_t, v (Ho et al., 2020, Eq. 7), and the variance of q(x_t|x_s), which is beta_t where s = t - 1.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = s, t
    alpha = alpha_t / alpha_s
    beta = sigma_t**2 - alpha**2 * sigma_s**2
    return alpha_s * beta / sigma_t**2, alpha * sigma_s**2 / sigma_t**2, beta * sigma_s**2 / sigma_t**2, beta


def power_timesteps(steps: int, n: int, power: float = 1.0) -> list[int]:
    """``n`` times from ``steps`` down to 1, both included for n > 1; a higher ``power`` puts more near the data.

    1 spaces them evenly; 2 is the quadratic choice of Song, Meng & Ermon (2021, App. D.2).

    >>> power_timesteps(1000, 5), power_timesteps(1000, 5, power=2)
    ([1000, 750, 500, 251, 1], [1000, 563, 251, 63, 1])
    """
    if not 1 <= n <= steps or power < 1:
        raise UserError(f"sampling steps must be from 1 to {steps} and power >= 1, got {n} and {power}")
    if n == 1:
        return [steps]
    times = 1 + (steps - 1) * torch.linspace(0, 1, n, dtype=torch.float64) ** power
    return times.round().long().maximum(torch.arange(1, n + 1)).flip(0).tolist()  # no time twice


def logsnr_timesteps(schedule: DiscreteSchedule, n: int, lowest: float = -6.0) -> list[int]:
    """``n`` times from T down to 1, evenly spaced in log(alpha_t / sigma_t) (Lu et al., 2022).

    Below ``lowest`` there is nothing but noise; T alone stands for all those times.
    """
    steps = schedule.steps
    if not 1 <= n <= steps:
        raise UserError(f"sampling steps must be from 1 to {steps}, got {n}")
    a, k = schedule.alpha_bar[1:].cpu(), torch.arange(n)
    log_snr = (a.log() - torch.log1p(-a)) / 2
    wanted = torch.linspace(float(log_snr[0]), max(float(log_snr[-1]), lowest), n, dtype=torch.float64)
    times = 1 + (log_snr - wanted[:, None]).abs().argmin(1)
    times[-1] = steps
    times = (times - k).cummax(0).values + k  # no time twice
    return times.minimum(steps - n + 1 + k).flip(0).tolist()
