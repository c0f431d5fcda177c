r"""Denoising Diffusion Probabilistic Models (Ho, Jain & Abbeel, 2020), arXiv:2006.11239.

    q(x_t|x_t-1)  = N(sqrt(1 - beta_t) x_t-1, beta_t I)                                               Eq. 2
    q(x_t|x_0)    = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I),  alpha_bar_t = prod (1 - beta_s)   Eq. 4
    p(x_t-1|x_t)  = q(x_t-1|x_t, x_0) with an estimate of x_0, its variance fixed                     Eq. 7, 11
    L_simple      = E ||eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t)||^2     Eq. 14
    -log p(x_0)  <= KL(q(x_T|x_0) || N(0, I)) + sum_t L_t-1 + L_0                                     Eq. 5

Pixels are in [-1, 1] here; p(x_0|x_1) is a Gaussian on their 256 levels (Eq. 13), its variance beta~_2 as in the
authors' code. Fast samplers: Song, Meng & Ermon (2021), arXiv:2010.02502; Lu et al. (2022), arXiv:2211.01095.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from lit_generative.diffusion.elbo import Bound, decoder_scale, strata, variational_bound
from lit_generative.diffusion.samplers import Denoiser, ddim, dpm_solver
from lit_generative.diffusion.schedules import SCHEDULES, DiscreteSchedule, Schedule, logsnr_timesteps, posterior
from lit_generative.errors import UserError
from lit_generative.families.diffusion_model import DiffusionModel, Spacing
from lit_generative.families.pixel_diffusion import Flow, PixelDiffusion
from lit_generative.images import from_symmetric
from lit_generative.likelihoods import DiscretizedGaussian
from lit_generative.metrics.aggregation import Stats
from lit_generative.utils.tasks import tracked


def ancestral(
    denoise: Denoiser,
    x_T: Tensor,
    schedule: Schedule,
    times: Sequence[float],
    variance: str = "small",
    generator: Generator | None = None,
) -> Tensor:
    """Algorithm 2, at all times or at some of them: draw x_s ~ p(x_s|x_t) step by step, its variance small or large.

    The mean of Eq. 7, with the estimate of x_0 for x_0, is that of Eq. 11.
    """
    x = x_T
    for t, s in tracked(list(pairwise([*times, 0])), "sampling"):
        x_0 = denoise(x, t)
        c_0, c_t, small, beta = posterior(schedule(s), schedule(t))
        x = c_0 * x_0 + c_t * x
        if s > 0:
            z = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            x = x + (beta if variance == "large" else small) ** 0.5 * z
    return x


class GaussianDiffusion(DiffusionModel):
    """The paper's diffusion of any data: its loss, samplers and bound; `DDPM` is that of pixels.

    Args:
        steps: T.
        schedule: How beta_t grows.
        parameterization: What the network predicts; ``v`` is alpha_t eps - sigma_t x_0 (Salimans & Ho, 2022).
        variance: Of p(x_s|x_t), s > 0: ``small``, that of q(x_s|x_t, x_0), or ``large``, beta_t. The variance of
            p(x_0|x_1) is the same in both, see `decoder_scale`.
        elbo_terms: Terms of the bound that `log_prob` draws for every image out of T - 1; 0: it takes them all.
        diffusion: Arguments of `DiffusionModel`.
    """

    immutable_hparams = ("steps", "schedule", "parameterization")
    schedule: DiscreteSchedule
    decoder_variance: str  # of p(x_0|x_1) in `bound`, as `describe_test` names it

    def __init__(
        self,
        steps: int = 1000,
        schedule: Literal["linear", "cosine"] = "linear",
        parameterization: Literal["eps", "x_0", "v"] = "eps",
        variance: Literal["small", "large"] = "small",
        elbo_terms: int = 20,
        **diffusion: Any,
    ) -> None:
        super().__init__(**diffusion)
        if elbo_terms < 0:
            raise UserError(f"elbo_terms must be >= 0, got {elbo_terms}")
        self.steps, self.schedule = steps, SCHEDULES[schedule](steps)
        self.parameterization, self.variance, self.elbo_terms = parameterization, variance, elbo_terms
        self.require_sampler(self.sampler, {})
        self.schedule.timesteps(self.sampling_steps)  # raises an error if these are too many
        drawn = 2 * len(strata(steps, max(1, elbo_terms // 2))) if 0 < elbo_terms < steps - 1 else 0
        self.log_prob_kind = f"bound, {f'{drawn} drawn' if drawn else 'all'} of its {steps - 1} terms in t"
        self.likelihood_kind = self.log_prob_kind

    # -- Algorithm 1: L_simple ---------------------------------------------------------------------

    def losses_at(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Algorithm 1's loss of images in [0, 1] at times ``(B,)``, one draw of eps each, ``(B,)`` (Eq. 14).

        The mean over numbers, as in the authors' code, and not their sum.
        """
        x_0 = self.to_data(x)
        eps = torch.randn_like(x_0)
        alpha, sigma = self.schedule.at(t, x_0)
        x_t = alpha * x_0 + sigma * eps  # Eq. 4
        target = {"eps": eps, "x_0": x_0, "v": alpha * eps - sigma * x_0}[self.parameterization]
        return (target - self.predict(x_t, t, c)).square().flatten(1).mean(1)

    def estimate(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """E[x_0|x_t] of the network's output ``out``: Eq. 4, solved for x_0."""
        alpha, sigma = self.schedule.at(t, x_t)
        return {"eps": (x_t - sigma * out) / alpha, "x_0": out, "v": alpha * x_t - sigma * out}[self.parameterization]

    # -- sampling: Algorithm 2 is `ancestral`, above -----------------------------------------------

    @property
    def samplers(self) -> Mapping[str, tuple[Callable[..., Tensor], Spacing]]:
        return {
            "ancestral": (partial(ancestral, variance=self.variance), DiscreteSchedule.timesteps),
            "ddim": (ddim, DiscreteSchedule.timesteps),
            "dpm_solver": (dpm_solver, logsnr_timesteps),
        }

    def denoising_trajectory(self, n: int, every: int, c: Tensor | None = None) -> Tensor:
        """x_t of ``n`` samples of Algorithm 2 at T, T - every, ... and 0, ``(frames, n, C, H, W)``."""
        frames: list[Tensor] = []

        def callback(t: float, x_t: Tensor, x_0: Tensor) -> None:
            if (self.steps - t) % every == 0:
                frames.append(self.to_images(x_t))

        x_T = self.noise(n, *self.data_shape)
        last = self.generate(x_T, c, self.steps, "ancestral", callback=callback)
        return torch.stack([*frames, last])

    # -- -log p(x_0) <= L_T + sum_t L_t-1 + L_0 ----------------------------------------------------

    @abstractmethod
    def bound(self, x: Tensor, c: Tensor | None = None, terms: int | None = None) -> Bound:
        """The terms of the bound on -log p(x), nats ``(B,)``; ``terms`` of them drawn (default: ``elbo_terms``)."""

    @torch.no_grad()
    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Lower bound on log p(x) of images in [0, 1], an unbiased estimate of it, nats ``(B,)``. No gradient."""
        self.require_labels(len(x), c, guidance=0)
        return self.bound(x, c).log_prob

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        """The loss in validation; in test the bound and its terms, and the variance of what was drawn of it."""
        if stage == "val":
            return super().evaluate(x, c, stage)
        bound = self.bound(x, c)
        return {
            "elbo": bound.log_prob,
            "nll": -bound.log_prob,
            "prior_kl": bound.prior,
            "diffusion": bound.diffusion,
            "decoder": bound.decoder,
            "drawn_terms_variance": bound.stderr.square(),
        }

    def summarize(self, stage: str, stats: dict[str, Stats]) -> dict[str, Tensor]:
        if stage == "val":
            return {}
        variance = stats.pop("drawn_terms_variance")  # one of every image's bound
        return {"drawn_terms_error": (variance.mean / variance.images).sqrt()}

    def describe_evaluation(self) -> str:
        return (
            f"one draw of every x_t, {self.variance} variance, {self.decoder_variance} in p(x_0|x_1); "
            "nll = prior_kl + diffusion + decoder; drawn_terms_error: what drawing terms adds to the error; "
            f"samples: {self.sampler}, {self.sampling_steps} steps"
        )


class DDPM(PixelDiffusion, GaussianDiffusion):
    """Diffusion of pixels, undone by a U-Net.

    Args:
        likelihood: What `log_prob` and tests give: the ``bound`` of Eq. 5, or that of the probability flow (``ode``).
        diffusion: Arguments of `PixelDiffusion` and `GaussianDiffusion`.
    """

    decoder_variance = "beta~_2"

    def __init__(self, likelihood: Literal["bound", "ode"] = "bound", **diffusion: Any) -> None:
        super().__init__(**diffusion)
        self.likelihood = likelihood
        if likelihood == "ode":
            self.likelihood_kind = self.log_prob_kind = self.ode_kind

    def predict(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.denoiser(x_t, t - 1, self.labels_or_none(t, c)).to(x_t)  # networks count from 0

    def estimate(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """E[x_0|x_t], clipped to [-1, 1]."""
        return super().estimate(x_t, out, t).clamp(-1, 1)

    def bound(self, x: Tensor, c: Tensor | None = None, terms: int | None = None) -> Bound:
        x_0, c = self.to_data(x), c if self.classes else None
        sigma = torch.as_tensor(decoder_scale(self.schedule) / 2).to(x)  # in units of [0, 1]

        def log_mass(estimate: Tensor) -> Tensor:  # log p(x_0|x_1), Eq. 13
            return DiscretizedGaussian.at(from_symmetric(estimate), sigma).log_prob(x)

        drawn = self.elbo_terms if terms is None else terms
        return variational_bound(self.denoise, self.schedule, x_0, log_mass, self.variance, drawn, c=c)

    # -- the probability flow, in y = x_t / alpha_t and s = sigma_t / alpha_t: dy/ds = eps -----------

    def probability_flow(self, c: Tensor | None) -> Flow:
        """From s_1 to s_T, or to 80, where nothing of the image is left."""
        first, last = self.schedule.ratio(1), min(self.schedule.ratio(self.steps), 80.0)

        def eps(s: float, y: Tensor) -> Tensor:
            alpha = (1 + s * s) ** -0.5
            x_t, t = alpha * y, torch.full((len(y),), self.schedule.time_of(s), device=y.device, dtype=y.dtype)
            out = self.predict(x_t, t, c)
            if self.parameterization == "v":
                return alpha * out + s * alpha * x_t
            return out if self.parameterization == "eps" else (y - out) / s

        def times(n: int) -> list[float]:  # even in log s
            return [first * (last / first) ** (i / n) for i in range(n + 1)]

        return Flow(eps, times, scale=(1 + last * last) ** -0.5)

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.ode_log_prob(x, c) if self.likelihood == "ode" else super().log_prob(x, c)

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        if stage == "test" and self.likelihood == "ode":
            return {"nll": -self.ode_log_prob(x, c if self.classes else None)}
        return super().evaluate(x, c, stage)

    def summarize(self, stage: str, stats: dict[str, Stats]) -> dict[str, Tensor]:
        return {} if self.likelihood == "ode" else super().summarize(stage, stats)

    def describe_evaluation(self) -> str:
        if self.likelihood == "ode":
            return f"samples: {self.sampler}, {self.sampling_steps} steps"
        return super().describe_evaluation()
