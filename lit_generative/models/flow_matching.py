r"""Flow Matching for Generative Modeling (Lipman et al., 2023), arXiv:2210.02747, with the straight paths of
Flow Straight and Fast (Liu, Gong & Liu, 2023), arXiv:2209.03003.

    x_t   = (1 - t) x_0 + t x_1,   x_0 an image in [-1, 1],  x_1 ~ N(0, I)
    loss  = E ||u_theta(x_t, t) - (x_1 - x_0)||^2,  t ~ U(0, 1)
    dx/dt = u_theta(x, t)                                        from t = 1 to 0: samples; from 0 to 1: likelihood
    log p(x_0) = log N(x_1; 0, I) + int_0^1 tr(du/dx) dt

Time runs from data to noise, as in `lit_generative.models.ddpm` and in Esser et al. (2024), arXiv:2403.03206; in the
papers above from noise to data. Here x_t - t u is the estimate of x_0 that guidance and pictures take.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lit_generative.diffusion.ode import Method, require_solver, solve
from lit_generative.diffusion.samplers import Denoiser
from lit_generative.diffusion.schedules import Pair, Schedule
from lit_generative.errors import UserError
from lit_generative.families.diffusion_model import Spacing
from lit_generative.families.pixel_diffusion import Flow, PixelDiffusion
from lit_generative.flows.dequantization import dequantize, quantize
from lit_generative.images import from_symmetric, to_symmetric
from lit_generative.metrics.aggregation import Stats


class Straight(Schedule):
    """alpha_t = 1 - t, sigma_t = t, t from 0 to 1.

    Args:
        logit_normal: Whether logit(t) ~ N(0, 1) in training (Esser et al., 2024, Section 3.1), and not t ~ U(0, 1).
    """

    def __init__(self, logit_normal: bool = False) -> None:
        super().__init__()
        self.logit_normal = logit_normal

    def forward(self, t: float) -> tuple[float, float]:
        return 1 - t, t

    def at(self, t: Tensor | float, like: Tensor) -> Pair:
        t = torch.as_tensor(t, device=like.device).to(like).view(-1, *[1] * (like.ndim - 1))
        return 1 - t, t

    def quantile(self, u: Tensor) -> Tensor:
        return torch.special.ndtri(u).sigmoid() if self.logit_normal else u

    def timesteps(self, n: int, power: float = 1.0, start: float = 1.0) -> list[float]:
        if n < 1 or power < 1:
            raise UserError(f"sampling steps and power must be >= 1, got {n} and {power}")
        return [float(start * (i / n) ** power) for i in range(n, 0, -1)]


def integrate(
    denoise: Denoiser, x_T: Tensor, schedule: Schedule, times: list[float], method: Method = "euler"
) -> Tensor:
    """Follow the velocity along ``times`` and from the last of them straight to t = 0.

    Heun's method evaluates the network twice a step, and takes every other time; dopri5 only the first, and chooses
    as many steps as its tolerance needs down to t = 1e-3.
    """
    times = {"euler": times, "heun": times[::2], "dopri5": [times[0], 1e-3]}[method]
    x = solve(lambda t, x: (x - denoise(x, t)) / t, x_T, times, method, name="sampling")
    return denoise(x, times[-1])


class FlowMatching(PixelDiffusion):
    """A velocity field on straight paths between images and noise, learned by a U-Net.

    Args:
        coupling: Which x_1 goes with which x_0: ``independent``, or ``optimal_transport``, the pairing of each batch
            with the least sum of squared distances (Tong et al., 2024, arXiv:2302.00482).
        time_density: Of t in training: ``uniform`` or ``logit_normal``.
        sampler: ``euler``, ``heun`` or ``dopri5``, which needs torchdiffeq.
        diffusion: Arguments of `PixelDiffusion`.
    """

    immutable_hparams = ()
    deterministic_sampler = "heun"

    def __init__(
        self,
        coupling: Literal["independent", "optimal_transport"] = "independent",
        time_density: Literal["uniform", "logit_normal"] = "uniform",
        sampler: str = "heun",
        **diffusion: Any,
    ) -> None:
        super().__init__(sampler=sampler, **diffusion)
        self.coupling, self.schedule = coupling, Straight(time_density == "logit_normal")
        self.require_sampler(sampler, {})
        self.likelihood_kind = self.log_prob_kind = self.ode_kind

    # -- training ----------------------------------------------------------------------------------

    def losses_at(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Mean squared error of the velocity of images in [0, 1] at times ``(B,)``, one draw of x_1 each, ``(B,)``."""
        x_0 = self.to_data(x)
        x_1 = torch.randn_like(x_0)
        if self.coupling == "optimal_transport":
            x_1 = x_1[nearest(x_0, x_1)]
        alpha, sigma = self.schedule.at(t, x_0)
        return (self.predict(alpha * x_0 + sigma * x_1, t, c) - (x_1 - x_0)).square().flatten(1).mean(1)

    def predict(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """u_theta."""
        return self.denoiser(x_t, 1000 * t, self.labels_or_none(t, c)).to(x_t)  # frequencies are those of 1000 steps

    def estimate(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return x_t - self.schedule.at(t, x_t)[1] * out

    # -- sampling and likelihood: one differential equation -----------------------------------------

    @property
    def samplers(self) -> Mapping[str, tuple[Callable[..., Tensor], Spacing]]:
        return {
            "euler": (integrate, Straight.timesteps),
            "heun": (partial(integrate, method="heun"), Straight.timesteps),
            "dopri5": (partial(integrate, method="dopri5"), Straight.timesteps),
        }

    def require_sampler(self, name: str, options: Mapping[str, Any]) -> tuple[Callable[..., Tensor], Spacing]:
        require_solver(name)
        return super().require_sampler(name, options)

    def velocity(self, t: float, x: Tensor, c: Tensor | None = None) -> Tensor:
        """dx/dt at one time."""
        return self.predict(x, torch.full((len(x),), t, device=x.device, dtype=x.dtype), c)

    def probability_flow(self, c: Tensor | None) -> Flow:
        # dense near the image, where the noise of the dequantisation is all that there is
        return Flow(partial(self.velocity, c=c), lambda n: [(i / n) ** 3 for i in range(n + 1)])

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See `ode_log_prob`."""
        return self.ode_log_prob(x, c)

    @torch.no_grad()
    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """x_1 of the middle of the image's bin, ``(B, C, H, W)``."""
        self.require_images(x)
        x_0 = to_symmetric(dequantize(x, torch.full_like(x, 0.5))[0])
        flow = self.probability_flow(c)
        return solve(flow.field, x_0, flow.times(self.ode_steps), self.ode_method)

    @torch.no_grad()
    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """The discrete image in whose bin the way from ``z`` ends, ``(B, C, H, W)`` in [0, 1]."""
        flow = self.probability_flow(c)
        return quantize(from_symmetric(solve(flow.field, z, flow.times(self.ode_steps)[::-1], self.ode_method)))

    # -- Lightning ---------------------------------------------------------------------------------

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        """The loss in validation; in test the likelihood."""
        if stage == "val":
            return super().evaluate(x, c, stage)
        return {"nll": -self.log_prob(x, c if self.classes else None)}

    def summarize(self, stage: str, stats: dict[str, Stats]) -> dict[str, Tensor]:
        return {}

    def describe_evaluation(self) -> str:
        return f"samples: {self.sampler}, {self.sampling_steps} evaluations of the network"


@torch.compiler.disable
def nearest(a: Tensor, b: Tensor) -> Tensor:
    """The order of rows ``b`` that has the least sum of squared distances to rows ``a``, int64 ``(B,)``."""
    from scipy.optimize import linear_sum_assignment  # takes long to import

    cost = torch.cdist(a.flatten(1).float(), b.flatten(1).float()).square()
    return torch.as_tensor(linear_sum_assignment(cost.detach().cpu().numpy())[1], device=a.device)
