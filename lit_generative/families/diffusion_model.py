"""What diffusion models share, whatever they diffuse and however they learn it: sampling, inspection, training."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_generative.diffusion.samplers import ddim
from lit_generative.diffusion.schedules import Schedule
from lit_generative.errors import UserError
from lit_generative.generative_model import GenerativeModel
from lit_generative.utils.interpolation import spherical_interpolation

StepCallback = Callable[[float, Tensor, Tensor], None]  # of t, x_t and the estimate of x_0
Spacing = Callable[..., list[Any]]  # of a schedule and a number of times


class DiffusionModel(GenerativeModel, ABC):
    """A ``denoiser`` that turns noise into data, and a schedule that turns data into noise.

    A model sets ``image_shape``, ``data_shape``, ``schedule`` and ``denoiser``, and writes `samplers`, `to_data`,
    `to_images`, `predict`, `estimate` and `losses_at`. Times may be integers or real numbers: only the schedule and
    these methods know.

    Args:
        sampler: The sampler that `sample` uses by default.
        sampling_steps: How often it evaluates the network.
        lr: Learning rate of Adam.
        lr_warmup_steps: Steps over which the learning rate rises from 0.
        lr_decay_start: Fraction of the run after which it falls linearly to 0; 1 keeps it constant.
    """

    data_shape: tuple[int, ...]
    deterministic_sampler = "dpm_solver"  # draws nothing but x_T
    schedule: Schedule
    denoiser: nn.Module
    needs_float32 = "images, their noise and the bound would be rounded"
    compiled_functions = ("losses_at",)

    def __init__(
        self,
        sampler: str = "dpm_solver",
        sampling_steps: int = 20,
        lr: float = 2e-4,
        lr_warmup_steps: int = 0,
        lr_decay_start: float = 1.0,
    ) -> None:
        super().__init__()
        if lr_warmup_steps < 0 or not 0 <= lr_decay_start <= 1:
            raise UserError(
                f"lr_warmup_steps must be >= 0 and lr_decay_start in [0, 1], got {lr_warmup_steps} and {lr_decay_start}"
            )
        self.save_hyperparameters()
        self.sampler, self.sampling_steps = sampler, sampling_steps
        self.lr, self.lr_warmup_steps, self.lr_decay_start = lr, lr_warmup_steps, lr_decay_start

    @property
    @abstractmethod
    def samplers(self) -> Mapping[str, tuple[Callable[..., Tensor], Spacing]]:
        """By name, a function of (denoise, x_T, schedule, times), and one of (schedule, n) that gives those times."""

    @abstractmethod
    def to_data(self, x: Tensor) -> Tensor:
        """The data ``(B, *data_shape)`` that are diffused for images ``(B, C, H, W)`` in [0, 1]."""

    @abstractmethod
    def to_images(self, x_0: Tensor) -> Tensor:
        """Images in [0, 1] of data ``(B, *data_shape)``."""

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """The network's output for noisy data at times ``(B,)``, in their shape."""

    @abstractmethod
    def estimate(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """E[x_0|x_t] that the network's output ``out`` for ``x_t`` at times ``(B,)`` stands for."""

    @abstractmethod
    def losses_at(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """The training loss of images in [0, 1] at times ``(B,)``, one draw of noise each, ``(B,)``."""

    # -- sampling ----------------------------------------------------------------------------------

    def denoise(self, x_t: Tensor, t: Tensor | float, c: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """Estimate of E[x_0|x_t] at times ``(B,)`` or at one time, in the shape of ``x_t``.

        With labels ``c``, ``guidance`` w > 0 takes (1 + w) times the network's output for them, less w times its output
        without labels (Ho & Salimans, 2022, Eq. 6).
        """
        t = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        out = self.predict(x_t, t, c)
        if guidance and c is not None:
            out = (1 + guidance) * out - guidance * self.predict(x_t, t)
        return self.estimate(x_t, out, t)

    @torch.no_grad()
    def generate(
        self,
        x_T: Tensor,
        c: Tensor | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        power: float | None = None,
        guidance: float = 0.0,
        eta: float | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Images in [0, 1] from noise ``(B, *data_shape)``; see `sample`. ``callback(t, x_t, x_0)`` sees every step."""
        name, n = sampler or self.sampler, self.sampling_steps if steps is None else steps
        options = {} if eta is None else {"eta": eta}
        draw, spacing = self.require_sampler(name, options)
        self.require_labels(len(x_T), c, guidance)
        times = spacing(self.schedule, n) if power is None else self.schedule.timesteps(n, power)

        def denoise(x_t: Tensor, t: float) -> Tensor:
            x_0 = self.denoise(x_t, t, c, guidance)
            if callback is not None:
                callback(t, x_t, x_0)
            return x_0

        return self.to_images(draw(denoise, x_T, self.schedule, times, **options))

    def sample(
        self,
        n: int,
        c: Tensor | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        power: float | None = None,
        guidance: float = 0.0,
        eta: float | None = None,
    ) -> Tensor:
        """Draw images ``(n, C, H, W)`` in [0, 1].

        Args:
            n: Number of images.
            c: Labels ``(n,)`` of a class-conditional model.
            steps: How often the network is evaluated (default: ``sampling_steps``).
            sampler: Name of one of `samplers` (default: the model's).
            power: Spacing of the times, see `power_timesteps` (default: the sampler's own).
            guidance: Strength of classifier-free guidance, see `denoise`.
            eta: Noise of the sampler ``ddim``, from 0 (none, the default) to 1 (as much as the ancestral one's).
        """
        x_T = self.noise(n, *self.data_shape)
        return self.generate(x_T, c, steps, sampler, power, guidance, eta)

    @torch.no_grad()
    def interpolate(self, n: int, steps: int, c: Tensor | None = None) -> Tensor:
        """Images of ``n`` arcs between two draws of x_T, each with its label if any, ``(n * steps, C, H, W)``."""
        x_T = spherical_interpolation(self.noise(2, n, *self.data_shape).flatten(2), steps)
        c = None if c is None else c.repeat_interleave(steps)
        return self.generate(x_T.unflatten(1, self.data_shape), c, sampler=self.deterministic_sampler)

    def require_sampler(self, name: str, options: Mapping[str, Any]) -> tuple[Callable[..., Tensor], Spacing]:
        """The sampler of that name and its spacing of times, or a ValueError if there is none with these options."""
        if name not in self.samplers:
            raise UserError(f"there is no sampler {name}: choose from {', '.join(self.samplers)}")
        draw, spacing = self.samplers[name]
        if unknown := options.keys() - inspect.signature(draw).parameters.keys():
            raise UserError(f"the sampler {name} has no option {', '.join(sorted(unknown))}")
        return draw, spacing

    def require_labels(self, n: int, c: Tensor | None, guidance: float) -> None:
        """Raise a TypeError or ValueError if ``n`` images cannot have these; see `sample`."""
        if guidance:
            raise UserError(f"guidance leads towards a class, and {type(self).__name__} is not class-conditional")

    # -- inspection --------------------------------------------------------------------------------

    @torch.no_grad()
    def noised(self, x: Tensor, t: Tensor) -> Tensor:
        """q(x_t|x_0) of images ``(B, C, H, W)`` at times ``(B,)``, as images in [0, 1]."""
        x_0 = self.to_data(x)
        return self.to_images(self.schedule.diffuse(x_0, t, torch.randn_like(x_0)))

    @torch.no_grad()
    def ood_scores(self, x: Tensor) -> dict[str, Tensor]:
        """Mean squared error of images that were noised to 0.1, 0.3, ... 0.9 of the diffusion and restored, ``(B, 5)``.

        The reconstructions of Graham et al. (2023), arXiv:2211.07740, Section 3, at several scales, by ten steps of
        DDIM each and without LPIPS.
        """
        x_0, errors = self.to_data(x), []
        for start in (0.1, 0.3, 0.5, 0.7, 0.9):
            times = self.schedule.timesteps(10, start=start)
            x_t = self.schedule.diffuse(x_0, times[0], torch.randn_like(x_0))
            restored = self.to_images(ddim(self.denoise, x_t, self.schedule, times))
            errors.append((restored - x).square().flatten(1).mean(1))
        return {"reconstruction": torch.stack(errors, 1)}

    # -- training ----------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, c = batch
        t = self.schedule.quantile(torch.rand(len(x), device=x.device))
        loss = self.losses_at(x, t, self.hide_labels(c)).mean()
        self.log_terms({"loss": loss}, len(x))
        return loss

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        """The training loss, at times that are spread evenly over the batch."""
        u = (torch.arange(len(x), device=x.device) + torch.rand(1, device=x.device)) / len(x)
        return {"loss": self.losses_at(x, self.schedule.quantile(u), c)}

    def default_optimizers(self) -> list[Optimizer]:
        return [torch.optim.Adam(self.denoiser.parameters(), self.lr, fused=self.fused)]
