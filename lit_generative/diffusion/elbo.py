"""The variational bound of a Gaussian diffusion, term by term; see `diffusion` for its letters."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lit_generative.diffusion.samplers import Denoiser
from lit_generative.diffusion.schedules import DiscreteSchedule, posterior
from lit_generative.utils.precision import exact
from lit_generative.utils.tasks import tracked


class Bound(NamedTuple):
    """The terms of -log p(x_0) <= prior + diffusion + decoder, nats ``(B,)`` each (Ho et al., 2020, Eq. 5)."""

    prior: Tensor  # L_T = KL(q(x_T|x_0) || N(0, I))
    diffusion: Tensor  # the sum of L_t-1 = KL(q(x_t-1|x_t, x_0) || p(x_t-1|x_t)) over t = 2..T
    decoder: Tensor  # L_0 = -log p(x_0|x_1)
    stderr: Tensor  # standard error of an image's `diffusion` for the t that were drawn; 0: all were taken

    @property
    def log_prob(self) -> Tensor:
        return -(self.prior + self.diffusion + self.decoder)


def prior_kl(schedule: DiscreteSchedule, x_0: Tensor) -> Tensor:
    """L_T of data ``(B, ...)``, nats ``(B,)``."""
    a = schedule.alpha_bar[-1]
    x, dims = exact(x_0.flatten(1)), x_0[0].numel()
    return (0.5 * (a * x.square().sum(1) + dims * (-a - torch.log1p(-a)))).to(x_0)


def decoder_scale(schedule: DiscreteSchedule) -> float:
    """The standard deviation of p(x_0|x_1) where x_0 is discrete, in the model's range: the root of beta~_2.

    The variance of q(x_0|x_1, x_0) is 0, and beta_1 gives the right level too little mass. The authors' code takes the
    first posterior variance that is not 0, whether the other steps have the small variance or the large one, "to get a
    better decoder log likelihood" (Ho et al., 2020, ``diffusion_utils_2.py``).
    """
    return math.sqrt(posterior(schedule(1), schedule(2))[2])


def step_kl(denoise: Denoiser, schedule: DiscreteSchedule, x_0: Tensor, t: Tensor, variance: str) -> Tensor:
    """L_t-1 of data ``(B, ...)`` at times ``(B,)`` from 2 on, from one draw of x_t, nats ``(B,)``."""
    estimate = denoise(schedule.diffuse(x_0, t, torch.randn_like(x_0)), t)
    error = exact((x_0 - estimate).square().flatten(1).sum(1))  # the means differ by c_0 times this
    c_0, _, v, beta = posterior(schedule.at(t - 1, error), schedule.at(t, error))
    ratio = v / beta if variance == "large" else torch.ones_like(v)  # of the true variance to the model's
    spread = x_0[0].numel() * (ratio - 1 - ratio.log())
    return (0.5 * (spread + c_0.square() / v * ratio * error)).to(x_0)


def strata(steps: int, n: int) -> Tensor:
    """Cut 2..T into up to ``n`` runs, short where terms are large: their first t and one past the last, ``(n, 2)``."""
    edges = torch.logspace(math.log10(2), math.log10(steps + 1), n + 1, dtype=torch.float64).round().long().unique()
    return torch.stack([edges[:-1], edges[1:]], 1)


def with_labels(denoise: Callable[..., Tensor], c: Tensor | None, i: Tensor | slice = slice(None)) -> Denoiser:
    """``denoise`` of the images ``i`` with their labels, if there are any."""
    return denoise if c is None else partial(denoise, c=c[i])


def variational_bound(
    denoise: Denoiser,
    schedule: DiscreteSchedule,
    x_0: Tensor,
    decoder: Callable[[Tensor], Tensor],
    variance: str = "small",
    terms: int = 0,
    chunk: int = 512,
    c: Tensor | None = None,
) -> Bound:
    """The bound on log p of data ``(B, ...)`` from one draw of every x_t, or from some of its terms.

    Args:
        denoise: The model.
        schedule: Its noise.
        x_0: Data, in the model's range.
        decoder: log p(x_0|x_1) by the estimate of x_0 ``(B, ...)``, nats ``(B,)``; its variance is its own.
        variance: Of p(x_s|x_t), s > 0: ``small``, that of q(x_s|x_t, x_0), or ``large``, beta_t.
        terms: 0: every t. Else about so many of 2..T are drawn for every image, in pairs from `strata` of t; all where
            that is not more work.
        chunk: Pairs of image and t that the model sees at a time.
        c: Labels ``(B,)``, if ``denoise`` takes such.
    """
    b, device = len(x_0), x_0.device
    if 0 < terms < schedule.steps - 1:
        runs = strata(schedule.steps, max(1, terms // 2)).to(device)
        u = exact(torch.rand(len(runs), 2, b, device=device))
        lower, upper = runs.to(u).T[..., None, None]
        t = (lower + (upper - lower) * u).long().to(device)  # (strata, 2, B)
        width = (upper - lower)[:, 0]
    else:
        t = torch.arange(2, schedule.steps + 1, device=device)[:, None, None].expand(-1, 1, b)
        width = exact(torch.ones(len(t), 1, device=device))
    flat, image = t.flatten(), torch.arange(b, device=device).expand_as(t).flatten()
    pairs = list(zip(flat.split(chunk), image.split(chunk), strict=True))
    kls = [
        step_kl(with_labels(denoise, c, i), schedule, x_0[i], at, variance)
        for at, i in tracked(pairs, "terms of the bound")
    ]
    each = exact(torch.cat(kls).view_as(t))
    diffusion = (width * each.mean(1)).sum(0)
    stderr = (width * (each[:, 0] - each[:, -1]) / 2).square().sum(0).sqrt()

    one = torch.ones(b, dtype=torch.long, device=device)
    estimate = with_labels(denoise, c)(schedule.diffuse(x_0, one, torch.randn_like(x_0)), one)
    return Bound(prior_kl(schedule, x_0), diffusion.to(x_0), -decoder(estimate), stderr.to(x_0))
