"""Samples of and ways through a latent space whose prior is N(0, I)."""

import math

import torch
from torch import Tensor

from lit_generative.errors import UserError


def not_negative(temperature: float) -> float:
    """The temperature of samples, or a ValueError."""
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature must be finite and >= 0, got {temperature}")
    return temperature


def spherical_interpolation(ends: Tensor, steps: int) -> Tensor:
    """``steps`` points on ``n`` ways between two ends, ``(2, n, D)`` to ``(n * steps, D)``, way by way.

    cos(a) start + sin(a) end, a from 0 to pi/2: of the law N(0, I) at every angle if both ends are.
    """
    start, end = ends
    a = torch.linspace(0, math.pi / 2, steps, device=start.device, dtype=start.dtype)[:, None]
    return (a.cos() * start[:, None] + a.sin() * end[:, None]).flatten(0, 1)


def manifold(z: Tensor, steps: int) -> Tensor:
    """A torus through four points ``(4, D)``, ``(steps * steps, D)`` row by row (Dinh et al., 2017, Eq. 19).

    cos(a) (cos(b) z_1 + sin(b) z_2) + sin(a) (cos(b) z_3 + sin(b) z_4), a down and b along, both once around.
    """
    angle = torch.arange(steps, device=z.device, dtype=z.dtype) * (2 * math.pi / steps)
    a, b = angle[:, None, None], angle[None, :, None]
    return (a.cos() * (b.cos() * z[0] + b.sin() * z[1]) + a.sin() * (b.cos() * z[2] + b.sin() * z[3])).flatten(0, 1)
