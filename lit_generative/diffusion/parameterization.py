r"""What the network of a diffusion predicts: eps, x_0 itself, or v = alpha eps - sigma x_0.

alpha = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t); v is that of Salimans & Ho (2022), Section 4.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_generative.diffusion.schedules import Schedule

# of (x_0, eps, alpha, sigma)
TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "eps": lambda x_0, eps, alpha, sigma: eps,
    "x_0": lambda x_0, eps, alpha, sigma: x_0,
    "v": lambda x_0, eps, alpha, sigma: alpha * eps - sigma * x_0,
}


# x_0 of (x_t, what the network says, alpha, sigma)
ESTIMATES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "eps": lambda x_t, eps, alpha, sigma: (x_t - sigma * eps) / alpha,
    "x_0": lambda x_t, x_0, alpha, sigma: x_0,
    "v": lambda x_t, v, alpha, sigma: alpha * x_t - sigma * v,
}


def denoising_losses(
    predict: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, parameterization: str, x_0: Tensor, t: Tensor
) -> Tensor:
    """L_simple (Ho et al., 2020, Eq. 14 and Algorithm 1) of data ``(B, ...)`` at times ``(B,)``, one draw, ``(B,)``.

    ``predict(x_t, t)`` is what the network says. The mean over numbers, as in the authors' code, not their sum.
    """
    a, eps = schedule.at(t, x_0), torch.randn_like(x_0)
    wanted = TARGETS[parameterization](x_0, eps, a.sqrt().to(x_0), (1 - a).sqrt().to(x_0))
    return (predict(schedule.diffuse(x_0, t, eps), t) - wanted).square().flatten(1).mean(1)


def estimate(schedule: Schedule, parameterization: str, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
    """x_0 of what the network says ``out`` ``(B, ...)`` of ``x_t`` at times ``(B,)``, ``(B, ...)``."""
    a = schedule.at(t, x_t)
    return ESTIMATES[parameterization](x_t, out, a.sqrt().to(x_t), (1 - a).sqrt().to(x_t))
