"""Samplers of a Gaussian diffusion as pure functions, and the times at which they call the model.

Each takes x_T ~ N(0, I) and the times; the last step goes on to t = 0.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from lit_generative.diffusion.schedules import Schedule, posterior
from lit_generative.errors import UserError

Denoiser = Callable[[Tensor, Tensor], Tensor]


StepCallback = Callable[[int, Tensor, Tensor], None]  # of t, x_t and the estimate of x_0, in every step of a sampler


def power_timesteps(steps: int, n: int, power: float = 1.0) -> list[int]:
    """``n`` times from T down to 1, both included for n > 1; the higher ``power``, the more of them near the data.

    1 spaces them alike; 2 is the quadratic choice of Song, Meng & Ermon (2021, App. D.2).

    >>> power_timesteps(1000, 5), power_timesteps(1000, 5, power=2)
    ([1000, 750, 500, 251, 1], [1000, 563, 251, 63, 1])
    """
    if not 1 <= n <= steps or power < 1:
        raise UserError(f"a sampler takes from 1 to {steps} steps and a power of at least 1, got {n} and {power}")
    if n == 1:
        return [steps]
    times = 1 + (steps - 1) * torch.linspace(0, 1, n, dtype=torch.float64) ** power
    return times.round().long().maximum(torch.arange(1, n + 1)).flip(0).tolist()  # no time twice


def logsnr_timesteps(schedule: Schedule, n: int, lowest: float = -6.0) -> list[int]:
    """``n`` times from T down to 1, evenly spaced in log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)) (Lu et al., 2022).

    Below ``lowest`` there is nothing but noise: there, T stands for all.
    """
    steps = schedule.steps
    if not 1 <= n <= steps:
        raise UserError(f"a sampler takes from 1 to {steps} steps, got {n}")
    a, k = schedule.alpha_bar[1:].cpu(), torch.arange(n)
    log_snr = (a.log() - torch.log1p(-a)) / 2
    wanted = torch.linspace(float(log_snr[0]), max(float(log_snr[-1]), lowest), n, dtype=torch.float64)
    times = 1 + (log_snr - wanted[:, None]).abs().argmin(1)
    times[-1] = steps
    times = (times - k).cummax(0).values + k  # no time twice
    return times.minimum(steps - n + 1 + k).flip(0).tolist()


def timesteps(schedule: Schedule, sampler: str, n: int, power: float | None = None) -> list[int]:
    """Where a sampler asks: without ``power`` evenly, ``dpm_solver`` in log-SNR, the others in t."""
    if power is None and sampler == "dpm_solver":
        return logsnr_timesteps(schedule, n)
    return power_timesteps(schedule.steps, n, 1.0 if power is None else power)


def _estimates(
    denoise: Denoiser,
    x: Tensor,
    times: list[int],
    callback: StepCallback | None,
    take: Callable[[Tensor, Tensor, int, int], Tensor],
) -> Tensor:
    """Go from the first time to 0 by ``take(x_t, estimate of x_0, t, s)``."""
    for t, s in pairwise([*times, 0]):
        estimate = denoise(x, torch.full((len(x),), t, device=x.device))
        if callback is not None:
            callback(t, x, estimate)
        x = take(x, estimate, t, s)
    return x


def _noise(x: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def ancestral(
    denoise: Denoiser,
    x_T: Tensor,
    schedule: Schedule,
    times: list[int],
    variance: str = "small",
    generator: Generator | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Draw x_s ~ p(x_s|x_t) step by step (Ho et al., 2020, Algorithm 2), its ``variance`` small or large."""
    a = schedule.alpha_bar.tolist()

    def take(x: Tensor, x_0: Tensor, t: int, s: int) -> Tensor:
        c_0, c_t, v = posterior(a[s], a[t])
        if s == 0:
            return x_0
        return c_0 * x_0 + c_t * x + (1 - a[t] / a[s] if variance == "large" else v) ** 0.5 * _noise(x, generator)

    return _estimates(denoise, x_T, times, callback, take)


def ddim(
    denoise: Denoiser,
    x_T: Tensor,
    schedule: Schedule,
    times: list[int],
    eta: float = 0.0,
    generator: Generator | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Denoising diffusion implicit models (Song, Meng & Ermon, 2021, Eq. 12 and 16); eta = 0 adds no noise."""
    a = schedule.alpha_bar.tolist()

    def take(x: Tensor, x_0: Tensor, t: int, s: int) -> Tensor:
        eps = (x - a[t] ** 0.5 * x_0) / (1 - a[t]) ** 0.5
        sigma = eta * posterior(a[s], a[t])[2] ** 0.5
        x = a[s] ** 0.5 * x_0 + max(0.0, 1 - a[s] - sigma**2) ** 0.5 * eps
        return x + sigma * _noise(x, generator) if sigma else x

    return _estimates(denoise, x_T, times, callback, take)


def ddim_inverse(denoise: Denoiser, x_0: Tensor, schedule: Schedule, times: list[int]) -> Tensor:
    """x_T from which `ddim` with eta = 0 comes to ``x_0``, as closely as the steps are small (ibid., Section 4.3).

    ``times`` run from T down, as the samplers' do.
    """
    a, x = schedule.alpha_bar.tolist(), x_0
    for s, t in pairwise([0, *reversed(times)]):
        # the noise at t is asked for at x_s, the nearest point that is known
        estimate = denoise(x, torch.full((len(x),), t, device=x.device))
        eps = (x - a[t] ** 0.5 * estimate) / (1 - a[t]) ** 0.5
        x = (a[t] / a[s]) ** 0.5 * (x - (1 - a[s]) ** 0.5 * eps) + (1 - a[t]) ** 0.5 * eps
    return x


def dpm_solver(
    denoise: Denoiser, x_T: Tensor, schedule: Schedule, times: list[int], callback: StepCallback | None = None
) -> Tensor:
    """DPM-Solver++(2M): the probability flow in two-step second order (Lu et al., 2022, Algorithm 2), no noise."""
    a = schedule.alpha_bar.tolist()
    log_snr = [math.inf, *(0.5 * math.log(v / (1 - v)) for v in a[1:])]  # the paper's lambda
    before: list[Any] = []  # the last estimate and its step in lambda

    def take(x: Tensor, x_0: Tensor, t: int, s: int) -> Tensor:
        h = log_snr[s] - log_snr[t]
        d = x_0
        if before and s > 0:  # the last step, to no noise at all, is of first order
            estimate, h_before = before
            d = x_0 + h / (2 * h_before) * (x_0 - estimate)
        before[:] = x_0, h
        return ((1 - a[s]) / (1 - a[t])) ** 0.5 * x - a[s] ** 0.5 * math.expm1(-h) * d

    return _estimates(denoise, x_T, times, callback, take)


# of (denoise, x_T, schedule, times, eta, variance, watch)
SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ancestral": lambda f, x, schedule, times, eta, variance, callback: ancestral(
        f, x, schedule, times, variance, callback=callback
    ),
    "ddim": lambda f, x, schedule, times, eta, variance, callback: ddim(f, x, schedule, times, eta, callback=callback),
    "dpm_solver": lambda f, x, schedule, times, eta, variance, callback: dpm_solver(
        f, x, schedule, times, callback=callback
    ),
}
