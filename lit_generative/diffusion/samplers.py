"""Samplers of a Gaussian diffusion, as plain functions.

Each takes ``denoise(x_t, t)``, which estimates E[x_0|x_t] of noisy data ``(B, ...)`` at one time; noise x_T ~ N(0, I);
a schedule; and falling times, from the last of which it steps to t = 0. The ancestral sampler is Algorithm 2 of
`lit_generative.models.ddpm`.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor

from lit_generative.diffusion.schedules import Schedule, posterior
from lit_generative.errors import UserError
from lit_generative.utils.tasks import tracked

Denoiser = Callable[..., Tensor]


def ddim(
    denoise: Denoiser,
    x_T: Tensor,
    schedule: Schedule,
    times: Sequence[float],
    eta: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """Denoising diffusion implicit models (Song, Meng & Ermon, 2021, Eq. 12 and 16); eta = 0 adds no noise."""
    if not 0 <= eta <= 1:
        raise UserError(f"eta must be in [0, 1], got {eta}")
    x = x_T
    for t, s in tracked(list(pairwise([*times, 0])), "sampling"):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        x_0 = denoise(x, t)
        eps = (x - alpha_t * x_0) / sigma_t
        noise = eta * math.sqrt(posterior((alpha_s, sigma_s), (alpha_t, sigma_t))[2])
        x = alpha_s * x_0 + math.sqrt(max(0.0, sigma_s**2 - noise**2)) * eps
        if noise:
            x = x + noise * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return x


def ddim_inverse(denoise: Denoiser, x_0: Tensor, schedule: Schedule, times: Sequence[float]) -> Tensor:
    """x_T from which `ddim` with eta = 0 returns to ``x_0``, up to the size of the steps (ibid., Section 4.3).

    ``times`` fall, as the samplers' do.
    """
    x = x_0
    for s, t in tracked(list(pairwise([0, *reversed(times)])), "encoding"):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
        eps = (x - alpha_t * denoise(x, t)) / sigma_t  # the noise at t, asked for at x_s, the nearest point known
        x = alpha_t * (x - sigma_s * eps) / alpha_s + sigma_t * eps
    return x


def dpm_solver(denoise: Denoiser, x_T: Tensor, schedule: Schedule, times: Sequence[float]) -> Tensor:
    """DPM-Solver++(2M): the probability flow in two-step second order (Lu et al., 2022, Algorithm 2), no noise."""
    x, x_0_before, h_before = x_T, x_T, 0.0
    for t, s in tracked(list(pairwise([*times, 0])), "sampling"):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        x_0 = denoise(x, t)
        if s == 0:
            return x_0
        h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)  # a step in the paper's lambda
        d = x_0 + h / (2 * h_before) * (x_0 - x_0_before) if h_before else x_0
        x = sigma_s / sigma_t * x - alpha_s * math.expm1(-h) * d
        x_0_before, h_before = x_0, h
    return x
