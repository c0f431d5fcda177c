r"""Denoising Diffusion Probabilistic Models (Ho, Jain & Abbeel, 2020), arXiv:2006.11239.

    q(x_t|x_t-1)  = N(sqrt(1 - beta_t) x_t-1, beta_t I)                                               Eq. 2
    q(x_t|x_0)    = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I),  alpha_bar_t = prod (1 - beta_s)   Eq. 4
    p(x_t-1|x_t)  = q(x_t-1|x_t, x_0) with an estimate of x_0, its variance fixed                     Eq. 7, 11
    L_simple      = E ||eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t)||^2     Eq. 14
    -log p(x_0)  <= KL(q(x_T|x_0) || N(0, I)) + sum_t L_t-1 + L_0                                     Eq. 5

Pixels are in [-1, 1] here; p(x_0|x_1) is a Gaussian on their 256 levels (Eq. 13), its variance beta~_2 as in the
authors' code. Fast samplers: Song, Meng & Ermon (2021), arXiv:2010.02502; Lu et al. (2022), arXiv:2211.01095. Guidance:
Ho & Salimans (2022), arXiv:2207.12598.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_generative.diffusion.elbo import Bound, decoder_scale, variational_bound
from lit_generative.errors import UserError, UserTypeError
from lit_generative.families.diffusion_model import DiffusionModel, Sampler
from lit_generative.images import from_symmetric, to_symmetric
from lit_generative.likelihoods import DiscretizedGaussian
from lit_generative.nn.unet import UNet, renamed
from lit_generative.training.batches import describe


class DDPM(DiffusionModel):
    """Diffusion of pixels, undone by a U-Net.

    Args:
        image_shape: (C, H, W) of the images.
        channels, blocks, attention_at, head_channels, dropout, groups, patch: The network's, see `UNet`.
        steps: T.
        schedule: How beta_t grows.
        parameterization: What the network predicts.
        variance: Of p(x_s|x_t), s > 0: ``small``, that of q(x_s|x_t, x_0), or ``large``, beta_t. That of p(x_0|x_1) is
            the same in both, see `decoder_scale`.
        classes: Number of labels to condition on; 0: none.
        label_dropout: Fraction of labels that training hides, so that guidance has a model without them.
        lr: Learning rate of Adam.
        lr_warmup_steps: Steps in which it rises from 0.
        lr_decay_start: Fraction of the run after which it falls linearly to 0; 1 keeps it constant.
        sampler: What `sample` goes by.
        sampling_steps: Times that it asks the network.
        elbo_terms: Terms of the bound that `log_prob` draws for every image out of T - 1; 0: it takes them all.
        init_from: Weights to start from, see `start_from`; also those of diffusers' ``UNet2DModel``.
    """

    decoder_variance = "beta~_2"

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
        steps: int = 1000,
        schedule: Literal["linear", "cosine"] = "linear",
        parameterization: Literal["eps", "x_0", "v"] = "eps",
        variance: Literal["small", "large"] = "small",
        classes: int = 0,
        label_dropout: float = 0.1,
        lr: float = 2e-4,
        lr_warmup_steps: int = 0,
        lr_decay_start: float = 1.0,
        sampler: Sampler = "dpm_solver",
        sampling_steps: int = 20,
        elbo_terms: int = 20,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        if classes < 0 or not (0 <= label_dropout <= 1 and (label_dropout or not classes)):
            raise UserError(
                "classes must be >= 0, label_dropout in [0, 1], and > 0 with classes (else samples without a "
                f"label come from what was never trained); got {classes}, {label_dropout}"
            )
        self.save_hyperparameters(ignore=["init_from"])  # what was loaded once is in every later checkpoint
        self.image_shape = self.data_shape = image_shape
        self.classes, self.label_dropout = classes, label_dropout
        labels = classes + 1 if classes else 0  # the last stands for none
        self.denoiser = UNet(image_shape, channels, blocks, attention_at, head_channels, dropout, groups, patch, labels)
        self.diffuse_by(
            steps,
            schedule,
            parameterization,
            variance,
            sampler,
            sampling_steps,
            elbo_terms,
            lr,
            lr_warmup_steps,
            lr_decay_start,
        )
        self.start_from(init_from)

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Diffusers' U-Nets have the weights of ours and the same names."""
        return {f"denoiser.{name}": v for name, v in renamed(state).items()} if "conv_in.weight" in state else state

    def require_fitting(self, data: Any) -> None:
        super().require_fitting(data)
        # a folder knows its classes when it was looked through
        known = len(data.classes) if hasattr(data, "classes") else getattr(data, "num_classes", 0)
        if self.classes and known > self.classes:
            raise UserError(
                f"DDPM is built for {self.classes} classes, but {type(data).__name__} has {known}: set "
                f"--model.classes {known}"
            )

    def take_condition(self, c: Any, x: Tensor, first: bool) -> Tensor:
        """Labels ``(B,)`` int64; of a model without classes see `TakesBatches`."""
        if not self.classes:
            return super().take_condition(c, x, first)
        # later ones are looked at where that does not wait for the device
        self.require_classes(c, len(x), look=first or x.device.type == "cpu")
        return c.long()

    # -- pixels in [-1, 1] -------------------------------------------------------------------------

    def to_data(self, x: Tensor) -> Tensor:
        self.require_images(x)
        return to_symmetric(x)

    def to_images(self, x_0: Tensor) -> Tensor:
        return from_symmetric(x_0).clamp(0, 1)

    def require_labels(self, n: int, c: Tensor | None, guidance: float) -> None:
        if guidance < 0 or (guidance and (c is None or not self.classes)):
            raise UserError("guidance leads towards a class: it is not negative, and needs labels and a model of them")
        if self.classes and c is not None:
            self.require_classes(c, n, look=True)

    def require_classes(self, c: Any, n: int, look: bool) -> None:
        """Raise a TypeError or ValueError unless ``c`` holds ``n`` labels; ``look`` at their values, too."""
        expected = f"{self._place()}: c must hold a label from 0 to {self.classes - 1} for each of {n} images"
        if not isinstance(c, Tensor):
            raise UserTypeError(f"{expected}, got {describe(c)}: give (x, c), or build the model with classes=0")
        if c.shape != (n,):
            remedy = "c.squeeze(1)" if c.shape == (n, 1) else "c.argmax(1)" if c.ndim == 2 else "one each"
            raise UserError(f"{expected}, got {describe(c)}: give {remedy}")
        if c.is_floating_point() or c.is_complex():
            raise UserTypeError(f"{expected}, got {describe(c)}: give c.long()")
        if look and n and not ((c >= 0) & (c < self.classes)).all():
            low, high = int(c.min()), int(c.max())
            remedy = "count from 0" if low == 1 and high == self.classes else f"set classes to {high + 1} or more"
            raise UserError(f"{expected}, got {low} to {high}: {remedy if low >= 0 else 'remove those below 0'}")

    # -- p(x_s|x_t) --------------------------------------------------------------------------------

    def predict(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        if self.classes and c is None:
            c = torch.full_like(t, self.classes)
        return self.denoiser(x_t, t - 1, c).to(x_t)  # networks count from 0

    def denoise(self, x_t: Tensor, t: Tensor, c: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """Estimate of E[x_0|x_t], cut to [-1, 1]; see `DiffusionModel.denoise`."""
        return super().denoise(x_t, t, c, guidance).clamp(-1, 1)

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """The denoiser: x_t, t - 1 ``(B,)`` int64, and labels if it knows them, to what ``parameterization`` says."""
        t = torch.zeros(2, dtype=torch.long)
        return {"denoiser": (self.denoiser, (torch.zeros(2, *self.image_shape), t, *([t] * (self.classes > 0))))}

    # -- -log p(x_0) <= L_T + sum_t L_t-1 + L_0 ----------------------------------------------------

    def bound(self, x: Tensor, c: Tensor | None = None, terms: int | None = None) -> Bound:
        self.require_images(x)
        sigma = decoder_scale(self.schedule).to(x) / 2  # in units of [0, 1]

        def log_mass(x_0: Tensor) -> Tensor:  # Eq. 13
            return DiscretizedGaussian.at(from_symmetric(x_0), sigma).log_prob(x)

        drawn = self.elbo_terms if terms is None else terms
        return variational_bound(self.denoise, self.schedule, self.to_data(x), log_mass, self.variance, drawn, c=c)
