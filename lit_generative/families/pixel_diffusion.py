r"""Diffusions of pixels by a U-Net, and the likelihood that their probability flow gives.

    dx/dt = f(t, x) has the marginals of the diffusion                           (Song et al., 2021, arXiv:2011.13456)
    log p(x) = log N(x_end; 0, I) + int tr(df/dx) dt
    log P(k) >= E_u[log p(v)] - D log 256,  v = (k + u) / 256,  x = 2 v - 1      `lit_generative.flows.dequantization`

A model with the network of another and `probability_flow` has the same bound, so that their numbers compare.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_generative.diffusion.ode import Field, probes_of, require_solver, solve_with_density
from lit_generative.errors import UserError
from lit_generative.families.class_conditional import ClassConditional
from lit_generative.families.diffusion_model import DiffusionModel
from lit_generative.flows.dequantization import UniformDequantization
from lit_generative.images import from_symmetric, to_symmetric
from lit_generative.likelihoods import standard_normal
from lit_generative.nn.unet import UNet, renamed


class Flow(NamedTuple):
    """The probability flow of a diffusion, from data to noise."""

    field: Field
    times: Callable[[int], list[float]]  # of a number of steps
    scale: float = 1.0  # what the end is multiplied by to be N(0, I)


class PixelDiffusion(ClassConditional, DiffusionModel):
    """Pixels in [-1, 1], a U-Net, and `ode_log_prob`.

    Args:
        image_shape: (C, H, W) of the images.
        channels: Channels of the U-Net's levels, from fine to coarse.
        blocks: Residual blocks of every level.
        attention_at: Levels that have self-attention.
        head_channels: Channels of an attention head; None: one head.
        dropout: Fraction of a block's activations that training drops.
        groups: Groups of group norm.
        patch: Side of the squares of pixels that are folded into channels first.
        ode_method: Solver of the probability flow in `ode_log_prob`; ``dopri5`` needs torchdiffeq.
        ode_steps: Its steps, of four evaluations with ``rk4``; ``dopri5`` chooses its own.
        ode_probes: Draws of Hutchinson's estimate of the trace; 0: the exact trace, for few dimensions.
        diffusion: Arguments of `ClassConditional` and `DiffusionModel`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        channels: Sequence[int] = (32, 96),
        blocks: int = 1,
        attention_at: Sequence[int] = (1,),
        head_channels: int | None = None,
        dropout: float = 0.0,
        groups: int = 8,
        patch: int = 2,
        ode_method: Literal["heun", "rk4", "dopri5"] = "rk4",
        ode_steps: int = 20,
        ode_probes: int = 1,
        **diffusion: Any,
    ) -> None:
        super().__init__(**diffusion)
        if ode_steps < 1 or ode_probes < 0:
            raise UserError(f"ode_steps must be >= 1 and ode_probes >= 0, got {ode_steps} and {ode_probes}")
        require_solver(ode_method)
        self.image_shape = self.data_shape = image_shape
        self.ode_method, self.ode_steps, self.ode_probes = ode_method, ode_steps, ode_probes
        labels = self.classes + 1 if self.classes else 0  # the last stands for none
        self.denoiser = UNet(image_shape, channels, blocks, attention_at, head_channels, dropout, groups, patch, labels)

    @property
    def ode_kind(self) -> str:
        """What `ode_log_prob` is."""
        steps = "" if self.ode_method == "dopri5" else f"{self.ode_steps} steps of "
        trace = f"{self.ode_probes} draws of the trace" if self.ode_probes else "exact trace"
        return f"bound by uniform dequantisation, probability flow by {steps}{self.ode_method}, {trace}"

    def to_data(self, x: Tensor) -> Tensor:
        self.require_images(x)
        return to_symmetric(x)

    def to_images(self, x_0: Tensor) -> Tensor:
        return from_symmetric(x_0).clamp(0, 1)

    @abstractmethod
    def probability_flow(self, c: Tensor | None) -> Flow:
        """The flow of images with labels ``(B,)``, if any."""

    def ode_log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Lower bound on log P(x) of images in [0, 1], one draw of the dequantisation, nats ``(B,)``. No gradient."""
        self.require_images(x)
        self.require_labels(len(x), c, guidance=0)
        v, to_levels = UniformDequantization()(x)
        return self.log_density(v, c) + to_levels

    def log_density(self, v: Tensor, c: Tensor | None = None) -> Tensor:
        """log p(v) of dequantised images ``(B, C, H, W)`` in [0, 1), nats ``(B,)``. No gradient."""
        self.require_images(v)
        with torch.inference_mode(False), torch.no_grad():  # the trace is a derivative
            x_0, flow = to_symmetric(v.clone()), self.probability_flow(None if c is None else c.clone())
            probes, dims = probes_of(x_0, self.ode_probes), x_0[0].numel()
            end, change = solve_with_density(flow.field, x_0, flow.times(self.ode_steps), probes, self.ode_method)
            return standard_normal(flow.scale * end.flatten(1)) + change + dims * math.log(2 * flow.scale)

    def convert_state_dict(self, state: dict[str, Tensor], file: str = "") -> dict[str, Tensor]:
        """Diffusers' U-Nets have the weights of ours and the same names."""
        return {f"denoiser.{name}": v for name, v in renamed(state).items()} if "conv_in.weight" in state else state

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """The denoiser: x_t, what the network takes as times ``(B,)``, and labels if any, to its output."""
        t = torch.zeros(2, dtype=torch.long)
        return {"denoiser": (self.denoiser, (torch.zeros(2, *self.image_shape), t, *([t] * (self.classes > 0))))}
