r"""Ordinary differential equations dx/dt = f(t, x), and the densities that they carry along.

    log p_a(x_a) = log p_b(x_b) + int_a^b tr(df/dx) dt         (Chen et al., 2018, arXiv:1806.07366, Eq. 8)
    tr(J)        = E[v' J v],  E[v v'] = I                     Hutchinson

The trace is that of the Jacobian along the path from time a to time b.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.utils.tasks import tracked

Field = Callable[[float, Tensor], Tensor]
Method = Literal["euler", "heun", "rk4", "dopri5"]


def solve(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    method: Method = "heun",
    tolerance: float = 1e-5,
    name: str = "solving",
) -> Tensor:
    """x ``(B, ...)`` at the last of ``times`` from x at the first.

    Args:
        field: dx/dt at a time and x.
        x: Where it starts.
        times: Rising or falling; of ``dopri5``, which chooses its own steps, only the first and last count.
        method: ``euler``, of order 1, ``heun``, of order 2 with two evaluations a step, ``rk4``, of order 4 with four
            (Runge and Kutta's), or ``dopri5``, of order 5, whose steps follow ``tolerance``, of the whole batch.
        tolerance: Relative and absolute error of a step of ``dopri5``.
        name: What a display calls it.

    Raises:
        ValueError: torchdiffeq, which has ``dopri5``, is not installed.
    """
    if method == "dopri5":
        return _odeint(field, x, torch.tensor([times[0], times[-1]], dtype=x.dtype, device=x.device), tolerance)
    step = {"euler": _euler, "heun": _heun, "rk4": _rk4}[method]
    for t, s in tracked(list(pairwise(times)), name):
        x = x + (s - t) * step(field, x, t, s)
    return x


def _euler(field: Field, x: Tensor, t: float, s: float) -> Tensor:
    """The slope from time t to s."""
    return field(t, x)


def _heun(field: Field, x: Tensor, t: float, s: float) -> Tensor:
    first = field(t, x)
    return (first + field(s, x + (s - t) * first)) / 2


def _rk4(field: Field, x: Tensor, t: float, s: float) -> Tensor:
    half, middle = (s - t) / 2, (s + t) / 2
    first = field(t, x)
    second = field(middle, x + half * first)
    third = field(middle, x + half * second)
    return (first + 2 * second + 2 * third + field(s, x + (s - t) * third)) / 6


def require_solver(method: str) -> None:
    """Raise a ValueError if the method is not installed."""
    if method == "dopri5":
        try:
            import torchdiffeq  # noqa: F401
        except ImportError as error:
            raise UserError("dopri5 needs torchdiffeq: pip install torchdiffeq, or choose rk4") from error


def _odeint(field: Field, x: Tensor, ends: Tensor, tolerance: float) -> Tensor:
    require_solver("dopri5")
    from torchdiffeq import odeint

    path: Tensor = odeint(lambda t, x: field(float(t), x), x, ends, rtol=tolerance, atol=tolerance, method="dopri5")
    return path[-1]


def probes_of(x: Tensor, n: int) -> Tensor:
    """v of which the sum of v' J v is tr(J), ``(n, B, ...)``: ``n`` draws of +-1 / sqrt(n), or 0: all unit vectors."""
    if n:
        return (torch.rand(n, *x.shape, device=x.device) < 0.5).to(x).mul(2).sub(1) / n**0.5
    dims = x[0].numel()
    return torch.eye(dims, device=x.device, dtype=x.dtype).view(dims, 1, *x.shape[1:]).expand(-1, *x.shape)


def solve_with_density(
    field: Field, x: Tensor, times: Sequence[float], probes: Tensor, method: Method = "rk4", tolerance: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """x at the last of ``times``, and the integral of the trace, nats ``(B,)``; no gradient. See `solve`, `probes_of`.

    The probes stay the same along the way, so that the integral is that of a smooth function (Grathwohl et al., 2019).
    """

    def both(t: float, state: Tensor) -> Tensor:
        with torch.enable_grad():
            x_t = state[:, :-1].reshape(x.shape).detach().requires_grad_()
            f = field(t, x_t)
            trace = state.new_zeros(len(state))
            for v in probes:
                (vj,) = torch.autograd.grad(f, x_t, v, retain_graph=True)
                trace = trace + (vj * v).flatten(1).sum(1)
        return torch.cat([f.flatten(1), trace[:, None]], 1).detach()

    state = solve(both, torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1), times, method, tolerance, "integrating")
    return state[:, :-1].reshape(x.shape), state[:, -1]
