r"""Bijections x -> z of images ``(B, C, H, W)`` or vectors ``(B, D)``, for densities by change of variables.

    log p_X(x) = log p_Z(f(x)) + log |det df/dx|                            Dinh et al. (2017), arXiv:1605.08803, Eq. 3

Every ``forward`` returns z and the log-determinant of its Jacobian, every ``inverse`` x and the negative of that:
``(B,)`` in nats per image, float32 or float64 even under autocast.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_generative.errors import UserError
from lit_generative.utils.precision import at_least_float32


class Bijection(nn.Module):
    """An invertible map; both directions return ``(output, log_det)``, ``log_det`` of shape ``(B,)``."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def zero_log_det(x: Tensor) -> Tensor:
    """The log-determinant of a permutation of the entries: zeros ``(B,)``."""
    return x.new_zeros(x.shape[0])  # len(x) would be a constant in an exported program


class Chain(Bijection):
    """One bijection after another, f_n(... f_1(x)) (Eq. 10 to 12)."""

    def __init__(self, *bijections: Bijection) -> None:
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = zero_log_det(x)
        for bijection in self.bijections:
            x, log_det = bijection(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = zero_log_det(z)
        bijection: Any
        for bijection in reversed(self.bijections):
            z, log_det = bijection.inverse(z)
            total = total + log_det
        return z, total


class Inverse(Bijection):
    """A bijection with its two directions exchanged."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.bijection(z)


# -- normalisation ---------------------------------------------------------------------------------


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel over the images and pixels of all processes, ``(C,)`` each."""
    x, dims = at_least_float32(x), [d for d in range(x.dim()) if d != 1]
    if x.numel() == x.shape[1]:
        raise UserError("batch statistics need more than one value per channel: train with larger batches")
    mean = _mean_over_ranks(x.mean(dims))
    return mean, _mean_over_ranks((x - per_channel(mean, x)).square().mean(dims))


def _mean_over_ranks(values: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    from torch.distributed.nn.functional import all_reduce  # differentiable

    return all_reduce(values) / dist.get_world_size()


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Reshape ``(C,)`` so that it broadcasts to ``x``."""
    return values.view(-1, *[1] * (x.dim() - 2))


def normalise(x: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """(x - mean) exp(log_scale) per channel, and its log-determinant."""
    z = (x - per_channel(mean, x)) * per_channel(log_scale.exp(), x)
    return z, (log_scale.sum() * x[0, 0].numel()).expand(x.shape[0])


def denormalise(z: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `normalise`."""
    x = z * per_channel((-log_scale).exp(), z) + per_channel(mean, z)
    return x, (-log_scale.sum() * z[0, 0].numel()).expand(z.shape[0])


class RunningBatchNorm(Bijection):
    """Batch normalisation by running statistics, invertible (Section 3.7, Eq. 17 and 18, and Appendix E).

    In training, the running statistics include the current batch, and gradients flow through the batch only. In eval
    mode and without gradients they are fixed, so that an image's density does not depend on the rest of its batch.

    Args:
        channels: Channels, or the dimension of vectors.
        momentum: Weight of the old running statistics in the new; less for the first batches.
        eps: Added to the variance.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, channels: int, momentum: float = 0.9, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = self.mean, self.variance
        if self.training and torch.is_grad_enabled():
            rho = (self.batches / (self.batches + 1)).clamp(max=self.momentum)
            now = moments(x)
            mean, variance = torch.lerp(now[0], mean, rho), torch.lerp(now[1], variance, rho)
            self.mean.copy_(mean.detach())
            self.variance.copy_(variance.detach())
            self.batches += 1
        return normalise(x, mean, self.log_scale(variance))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return denormalise(z, self.mean, self.log_scale(self.variance))

    def log_scale(self, variance: Tensor) -> Tensor:
        return -0.5 * (variance + self.eps).log()


class ActNorm(Bijection):
    """Learned shift and scale per channel (Kingma & Dhariwal, 2018, arXiv:1807.03039, Section 3.1).

    The first training batch, over all processes, sets them so that its channels have mean 0 and variance 1. This
    happens once, and not again after a checkpoint is loaded.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.tensor(False))
        self.waits = True  # for its first batch: what `initialized` says, where the compiler can look at it
        self.register_load_state_dict_post_hook(_look_at_initialized)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        mean, variance = moments(x)
        self.mean.copy_(mean)
        self.log_scale.copy_(-0.5 * (variance + 1e-6).log())
        self.initialized.fill_(True)
        self.waits = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and torch.is_grad_enabled() and self.waits:
            self.initialize(x)
        return normalise(x, self.mean, self.log_scale)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return denormalise(z, self.mean, self.log_scale)


def _look_at_initialized(norm: ActNorm, _: Any) -> None:
    norm.waits = not norm.initialized


# -- permutations and splits -----------------------------------------------------------------------


class Squeeze(Bijection):
    """Space to channels, ``(B, C, H, W)`` to ``(B, 4C, H/2, W/2)``, ordered by position, then channel (Fig. 3)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(b, 4 * c, h // 2, w // 2), zero_log_det(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        b, c, h, w = z.shape
        z = z.reshape(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
        return z.reshape(b, c // 4, 2 * h, 2 * w), zero_log_det(z)


class Flatten(Bijection):
    """Images of ``shape`` to vectors, ``(B, C, H, W)`` to ``(B, CHW)``."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), zero_log_det(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.unflatten(1, self.shape), zero_log_det(z)


class Permute(Bijection):
    """Permute the entries of vectors ``(B, D)``: z_i = x_order[i]."""

    order: Tensor
    back: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, self.order], zero_log_det(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, self.back], zero_log_det(z)


class Split(Bijection):
    """Factor out half of the channels and transform the other half further, to vectors (Section 3.6).

    Args:
        shape: (C, H, W) of the images.
        rest: Bijection from images of (C/2, H, W) to vectors.
    """

    def __init__(self, shape: tuple[int, int, int], rest: Bijection) -> None:
        super().__init__()
        c, h, w = shape
        self.shape, self.rest = (c // 2, h, w), rest

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, done = x.chunk(2, 1)
        z, log_det = self.rest(x)
        return torch.cat([z, done.flatten(1)], 1), log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z, done = z.chunk(2, 1)
        x, log_det = self.rest.inverse(z)
        return torch.cat([x, done.unflatten(1, self.shape)], 1), log_det
