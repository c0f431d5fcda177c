"""What diffusion models share under Lightning, whatever it is that they diffuse."""

import math
from abc import abstractmethod
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_generative.diffusion.elbo import Bound, strata
from lit_generative.diffusion.parameterization import denoising_losses, estimate
from lit_generative.diffusion.samplers import SAMPLERS, StepCallback, ddim, power_timesteps, timesteps
from lit_generative.diffusion.schedules import SCHEDULES
from lit_generative.errors import UserError
from lit_generative.generative_model import GenerativeModel
from lit_generative.likelihoods import bits_per_dim, in_bits
from lit_generative.metrics.aggregation import Moments
from lit_generative.utils.interpolation import spherical_interpolation
from lit_generative.utils.rng import batch_rng

Sampler = Literal["ancestral", "ddim", "dpm_solver"]


class DiffusionModel(GenerativeModel):
    """A ``denoiser`` of data of ``data_shape`` that are made from images, and images from them.

    A model gives ``image_shape``, ``data_shape``, ``denoiser`` and ``decoder_variance``, calls `diffuse_by` when these
    are there, and says what is diffused: `to_data`, `to_images`, `predict`, `denoise` and `bound`.
    """

    immutable_hparams = ("steps", "schedule", "parameterization")
    steps: int  # T
    data_shape: tuple[int, ...]
    denoiser: nn.Module
    needs_float32 = "images, their noise and the bound would be rounded"
    decoder_variance: str  # of p(x_0|x_1) in `bound`, as `describe_test` names it
    classes, label_dropout = 0, 0.0

    def diffuse_by(
        self,
        steps: int,
        schedule: str,
        parameterization: str,
        variance: str,
        sampler: str,
        sampling_steps: int,
        elbo_terms: int,
        lr: float,
        lr_warmup_steps: int,
        lr_decay_start: float,
    ) -> None:
        """Keep how data become noise, how noise becomes data, and how this is learned; see `DDPM`."""
        if min(lr_warmup_steps, elbo_terms) < 0 or not 0 <= lr_decay_start <= 1:
            given = f"{lr_warmup_steps}, {elbo_terms}, {lr_decay_start}"
            raise UserError(f"warmup, elbo_terms are at least 0, lr_decay_start in [0, 1]: got {given}")
        power_timesteps(steps, sampling_steps)  # says what is wrong with them
        self.steps, self.schedule = steps, SCHEDULES[schedule](steps)
        self.parameterization, self.variance, self.sampler, self.sampling_steps = (
            parameterization,
            variance,
            sampler,
            sampling_steps,
        )
        self.elbo_terms, self.lr, self.lr_warmup_steps, self.lr_decay_start = (
            elbo_terms,
            lr,
            lr_warmup_steps,
            lr_decay_start,
        )
        drawn = 2 * len(strata(steps, max(1, elbo_terms // 2))) if 0 < elbo_terms < steps - 1 else 0
        self.log_prob_kind = f"bound, {f'{drawn} drawn' if drawn else 'all'} of its {steps - 1} terms in t"
        self.likelihood_kind = self.log_prob_kind + (", given the class" if self.classes else "")
        self._tested, self.dims = 0, math.prod(self.image_shape)
        # of every image: the loss in validation; the bound, its parts and the variance of what was drawn in test
        self.losses, self.terms = Moments(1), Moments(5)

    @abstractmethod
    def to_data(self, x: Tensor) -> Tensor:
        """What is diffused of images ``(B, C, H, W)`` in [0, 1], ``(B, *data_shape)``."""

    @abstractmethod
    def to_images(self, x_0: Tensor) -> Tensor:
        """Images in [0, 1] of data ``(B, *data_shape)``."""

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """What the network says of noisy data at times ``(B,)`` from 1 to T, in their shape."""

    @abstractmethod
    def bound(self, x: Tensor, c: Tensor | None = None, terms: int | None = None) -> Bound:
        """The terms of the bound on -log p(x), nats ``(B,)``; ``terms`` of them drawn (default: ``elbo_terms``)."""

    def denoise(self, x_t: Tensor, t: Tensor, c: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """Estimate of E[x_0|x_t], in the shape of ``x_t``.

        With labels ``c``, ``guidance`` w > 0 takes (1 + w) times what the network says knowing them, less w times what
        it says without (Ho & Salimans, 2022, Eq. 6).
        """
        out = self.predict(x_t, t, c)
        if guidance and c is not None and self.classes:
            out = (1 + guidance) * out - guidance * self.predict(x_t, t)
        return estimate(self.schedule, self.parameterization, x_t, out, t)

    def losses_at(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """L_simple of images in [0, 1] at times ``(B,)``, ``(B,)``."""
        return denoising_losses(partial(self.predict, c=c), self.schedule, self.parameterization, self.to_data(x), t)

    @torch.no_grad()
    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Lower bound on log p(x) of images in [0, 1], an unbiased estimate of it, nats ``(B,)``. No gradient."""
        self.require_labels(len(x), c, guidance=0)
        return self.bound(x, c).log_prob

    # -- sampling ----------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        x_T: Tensor,
        c: Tensor | None = None,
        steps: int | None = None,
        sampler: Sampler | None = None,
        eta: float = 0.0,
        power: float | None = None,
        guidance: float = 0.0,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Images in [0, 1] from noise ``(B, *data_shape)``; see `sample`. ``callback(t, x_t, x_0)`` sees every step."""
        name, steps = sampler or self.sampler, self.sampling_steps if steps is None else steps
        if name not in SAMPLERS:
            raise UserError(f"there is no sampler {name}: choose from {', '.join(SAMPLERS)}")
        if not (0 <= eta <= 1 and (eta == 0 or name == "ddim")):
            raise UserError(f"eta lies in [0, 1] and is an option of ddim: got {eta} for {name}")
        self.require_labels(len(x_T), c, guidance)
        denoise = partial(self.denoise, c=c, guidance=guidance)
        times = timesteps(self.schedule, name, steps, power)
        return self.to_images(SAMPLERS[name](denoise, x_T, self.schedule, times, eta, self.variance, callback))

    def sample(
        self,
        n: int,
        c: Tensor | None = None,
        steps: int | None = None,
        sampler: Sampler | None = None,
        eta: float = 0.0,
        power: float | None = None,
        guidance: float = 0.0,
    ) -> Tensor:
        """Draw images ``(n, C, H, W)`` in [0, 1].

        Args:
            n: Number of images.
            c: Labels ``(n,)`` of a model that knows classes.
            steps: Times that the network is asked (default: ``sampling_steps``).
            sampler: ``ancestral``, ``ddim`` or ``dpm_solver`` (default: the model's).
            eta: Noise of ``ddim``, 0 to 1.
            power: Spacing of the time steps, see `power_timesteps`; default: even in log-SNR for ``dpm_solver``, else
                in t.
            guidance: How far beyond the labelled model, see `denoise`.
        """
        x_T = self.noise(n, *self.data_shape)
        return self.generate(x_T, c, steps, sampler, eta, power, guidance)

    def interpolate(self, n: int, steps: int, c: Tensor | None = None) -> Tensor:
        """Images of ``n`` arcs between two draws of x_T, each with its label if any, ``(n * steps, C, H, W)``."""
        x_T = spherical_interpolation(self.noise(2, n, *self.data_shape).flatten(2), steps)
        c = None if c is None else c.repeat_interleave(steps)
        return self.generate(x_T.unflatten(1, self.data_shape), c, sampler="dpm_solver")

    def require_labels(self, n: int, c: Tensor | None, guidance: float) -> None:
        """Raise a TypeError or ValueError if ``n`` images cannot have these; see `sample`."""
        if guidance:
            raise UserError(f"guidance leads towards a class, and {type(self).__name__} knows none")

    # -- looking -----------------------------------------------------------------------------------

    @torch.no_grad()
    def noised(self, x: Tensor, t: Tensor) -> Tensor:
        """q(x_t|x_0) of images ``(B, C, H, W)`` at times ``(B,)``, as images in [0, 1]."""
        x_0 = self.to_data(x)
        return self.to_images(self.schedule.diffuse(x_0, t, torch.randn_like(x_0)))

    def denoising(self, n: int, every: int, c: Tensor | None = None) -> Tensor:
        """x_t of ``n`` samples of the ancestral sampler at T, T - every, ... and 0, ``(frames, n, C, H, W)``."""
        frames: list[Tensor] = []

        def callback(t: int, x_t: Tensor, x_0: Tensor) -> None:
            if (self.steps - t) % every == 0:
                frames.append(self.to_images(x_t))

        x_T = self.noise(n, *self.data_shape)
        last = self.generate(x_T, c, self.steps, "ancestral", callback=callback)
        return torch.stack([*frames, last])

    @torch.no_grad()
    def ood_scores(self, x: Tensor) -> dict[str, Tensor]:
        """How far images noised to T/10, 3T/10, ... come back from themselves: mean squared error, ``(B, 5)``.

        The reconstructions of Graham et al. (2023), arXiv:2211.07740, Section 3, at several scales, by ten steps of
        DDIM each and without LPIPS.
        """
        errors = []
        for tenths in (1, 3, 5, 7, 9):
            t = max(1, self.steps * tenths // 10)
            x_0 = self.to_data(x)
            x_t = self.schedule.diffuse(x_0, torch.full((len(x),), t, device=x.device), torch.randn_like(x_0))
            back = ddim(self.denoise, x_t, self.schedule, power_timesteps(t, min(t, 10)))
            errors.append((self.to_images(back) - x).square().flatten(1).mean(1))
        return {"reconstruction": torch.stack(errors, 1)}

    # -- Lightning ---------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, c = batch
        t = torch.randint(1, self.schedule.steps + 1, (len(x),), device=x.device)
        if self.classes:  # the label behind the last stands for none
            c = c.masked_fill(torch.rand(len(c), device=c.device) < self.label_dropout, self.classes)
        loss = self.losses_at(x, t, c).mean()
        self.log_terms({"loss": loss}, len(x))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, c = batch
        with batch_rng(self, batch_idx):
            u = (torch.arange(len(x), device=x.device) + torch.rand(1, device=x.device)) / len(x)  # all times alike
            t = 1 + (u * self.schedule.steps).long().clamp(max=self.schedule.steps - 1)
            self.losses.update(self.losses_at(x, t, c)[:, None])

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self.losses.compute()[0, 0].float(), sync_dist=True)  # summed over ranks already
        self.losses.reset()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, c = batch
        with batch_rng(self, batch_idx):
            bound = self.bound(x, c if self.classes else None)
        parts = [bound.log_prob, bound.prior, bound.diffusion, bound.decoder, bound.stderr.square()]
        self.terms.update(torch.stack(parts, -1))

    def on_test_epoch_end(self) -> None:
        moments = self.terms.compute()
        self.terms.reset()
        mean, stderr, n = moments[0].float(), moments[2, 0].float(), moments[3, 0].float()
        self._tested, error = int(n), (mean[4] / n).sqrt()
        metrics = {"elbo": mean[0], "nll": -mean[0], "nll_stderr": stderr}
        metrics |= {"prior_kl": mean[1], "diffusion": mean[2], "decoder": mean[3], "drawn_terms_error": error}
        if in_bits(self.num_levels):
            metrics |= {"bpd": bits_per_dim(mean[0], self.dims), "bpd_stderr": bits_per_dim(-stderr, self.dims)}
        self.log_dict({f"test/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def describe_test(self) -> str:
        return (
            f"{self._tested:,} images; nats per image over {self.dims} pixels of {self.num_levels} levels, "
            f"± standard error over images; nll{', bpd' if in_bits(self.num_levels) else ''}: {self.likelihood_kind}, "
            f"one draw of every x_t, {self.variance} variance, {self.decoder_variance} in p(x_0|x_1); "
            f"nll = prior_kl + diffusion + decoder; drawn_terms_error: what drawing terms adds to the error; "
            f"samples: {self.sampler}, {self.sampling_steps} steps"
        )

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The bound ``log_prob`` of every image, with its label ``c``."""
        x, c = batch
        with batch_rng(self, batch_idx):
            return {"log_prob": self.log_prob(x, c if self.classes else None), "c": c}

    def configure_optimizers(self) -> Any:
        learning = torch.optim.Adam(self.denoiser.parameters(), self.lr, fused=self.fused)
        return self.with_decay(learning, self.lr_decay_start, self.lr_warmup_steps)
