r"""A flow on the latents of an autoencoder: RealNVP (Dinh et al., 2017, arXiv:1605.08803) where images are simple.

    first       minimise |x - d(e(x))|^2                          an autoencoder e, d, or one that is there already
    then        maximise log p(h),  h = e(x), e and d frozen      a stack of couplings on vectors, Eq. 3
    sample      z ~ N(0, I),  x = d(f^-1(z))

log p(h) is a density of the latent, in nats. It is no bound on log p(x), and not comparable with one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_generative.errors import UserError
from lit_generative.families.two_stage import load_frozen_autoencoder
from lit_generative.flows.bijections import Chain, Inverse
from lit_generative.flows.coupling import dense
from lit_generative.generative_model import GenerativeModel
from lit_generative.likelihoods import nan_to_neg_inf, standard_normal
from lit_generative.nn.mlp import MLPAutoencoder
from lit_generative.training.progress import progress
from lit_generative.utils.interpolation import not_negative, spherical_interpolation


class LatentFlow(GenerativeModel):
    """An autoencoder, then a RealNVP of its latents, in one run.

    Args:
        image_shape: (C, H, W) of the images.
        autoencoder: None for one of its own, fully connected; or the checkpoint of a model that can encode and decode,
            whose latents are vectors; then the next three do nothing. What is saved afterwards holds that model, and
            alone is enough to resume.
        hidden: Units of its own autoencoder's hidden layers.
        latent: Numbers that its own autoencoder puts out.
        autoencoder_fraction: Fraction of the run that trains its own autoencoder; the rest trains the flow, which once
            started continues in a longer run, too.
        couplings: Couplings of the flow.
        width: Units of the conditioners' hidden layers.
        depth: Hidden layers of the conditioners.
        lr: Learning rate of Adam.
        lr_decay_start: Fraction of the run after which the learning rate falls linearly to 0; 1 keeps it constant.
    """

    needs_float32 = "a density of rounded latents is none"
    compiled_functions = ("error", "latent_log_density")
    ood_headline = "sum"
    smallest_batch = 2  # of vectors, whose variance the flow's normalisations start from

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        autoencoder: str | dict[str, Any] | None = None,
        hidden: Sequence[int] = (512,),
        latent: int = 32,
        autoencoder_fraction: float = 0.5,
        couplings: int = 8,
        width: int = 256,
        depth: int = 2,
        lr: float = 1e-3,
        lr_decay_start: float = 0.8,
    ) -> None:
        super().__init__()
        if min(latent, couplings, width, depth, *hidden) < 1 or not (
            0 < autoencoder_fraction < 1 and 0 <= lr_decay_start <= 1
        ):
            raise UserError(
                "latent, hidden, couplings, width and depth must be >= 1, autoencoder_fraction in (0, 1), "
                f"lr_decay_start in [0, 1]; got {latent}, {hidden}, {couplings}, {width}, {depth}, "
                f"{autoencoder_fraction}, {lr_decay_start}"
            )
        self.pretrained = autoencoder is not None
        self.autoencoder: Any
        if autoencoder is None:
            self.autoencoder = MLPAutoencoder(image_shape, hidden, latent)
        else:
            self.autoencoder, autoencoder = load_frozen_autoencoder(autoencoder, image_shape)
            self.num_levels = self.autoencoder.num_levels
        self.save_hyperparameters()  # of a borrowed autoencoder its description, no longer its file
        self.image_shape = image_shape
        with torch.no_grad():
            shape = self.autoencoder.encode(torch.zeros(1, *image_shape)).shape
        if len(shape) != 2:
            raise UserError(f"the autoencoder's latents must be vectors, not of shape {tuple(shape[1:])}")
        self.latent = shape[1]
        self.autoencoder_fraction, self.lr, self.lr_decay_start = (
            0.0 if self.pretrained else autoencoder_fraction,
            lr,
            lr_decay_start,
        )
        self.flow = Chain(*dense(self.latent, couplings, width, depth, "act", alternate=True))
        self.flow_started = False  # whether the autoencoder is done

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """The flow of latents ``(B, latent)`` to z and back, with log-determinants; and the autoencoder's.

        Of an autoencoder of its own, the decoder of latents to logits of pixels.
        """
        latent = torch.zeros(2, self.latent)
        own = {"flow": (self.flow, (latent,)), "inverse": (Inverse(self.flow), (latent,))}
        if self.pretrained:
            return own | self.autoencoder.programs()
        return own | {"decoder": (self.autoencoder.decoder, (latent,))}

    # -- density of the latent ---------------------------------------------------------------------

    def latent_log_density(self, h: Tensor) -> Tensor:
        """log p(h) of the autoencoder's latents ``(B, latent)``, nats ``(B,)``. Not a likelihood of images."""
        z, log_det = self.flow(h)
        return standard_normal(z) + log_det

    def density_and_error(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(e(x)), -inf where it is NaN, and |x - d(e(x))|^2 of images, ``(B,)`` each."""
        self.require_images(x)
        with torch.autocast(x.device.type, enabled=False):  # the density is one of unrounded numbers
            h = self.autoencoder.encode(x)
        return nan_to_neg_inf(self.latent_log_density(h)), self.error(x, h)

    def error(self, x: Tensor, h: Tensor) -> Tensor:
        """|x - d(h)|^2, ``(B,)``."""
        return (x - self.autoencoder.decode(h)).square().flatten(1).sum(1)

    def ood_scores(self, x: Tensor) -> dict[str, Tensor]:
        """-log p(h) in nats, |x - d(h)|^2, and their sum: -log p(h) N(x; d(h), I/2) up to a constant; ``(B,)``."""
        log_density, error = self.density_and_error(x)
        return {"latent_density": -log_density, "reconstruction": error, "sum": error - log_density}

    # -- latent space and sampling -----------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """z = f(e(x)), ``(B, latent)``."""
        self.require_images(x)
        return self.flow(self.autoencoder.encode(x))[0]

    def decode(self, z: Tensor) -> Tensor:
        """d(f^-1(z)), ``(B, C, H, W)`` in [0, 1]."""
        return self.autoencoder.decode(self.flow.inverse(z)[0])

    def reconstruct(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """d(e(x)): the flow is exact, the autoencoder is not."""
        self.require_images(x)
        return self.autoencoder.decode(self.autoencoder.encode(x))

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Decode z ~ N(0, temperature^2 I), ``(n, C, H, W)`` in [0, 1]."""
        return self.decode(not_negative(temperature) * self.noise(n, self.latent))

    @torch.no_grad()
    def interpolate(self, n: int, steps: int, c: Tensor | None = None) -> Tensor:
        """Images along ``n`` arcs between two draws of z, ``(n * steps, C, H, W)`` in [0, 1]."""
        return self.decode(spherical_interpolation(self.noise(2, n, self.latent), steps))

    # -- Lightning ---------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and not self.pretrained:
            self.require_length("autoencoder_fraction")
            self.require_unused_parameters("trains the autoencoder first and the flow then")
            if any(isinstance(callback, EarlyStopping) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
                raise UserError("LatentFlow has no density to watch while its autoencoder trains: drop EarlyStopping")

    def train(self, mode: bool = True) -> "LatentFlow":
        super().train(mode)
        if self.pretrained:
            self.autoencoder.eval()
        return self

    def training_state(self) -> dict[str, Any]:
        return super().training_state() | {"flow_started": self.flow_started}

    def start_training(self, state: Mapping[str, Any]) -> None:
        super().start_training(state)
        self.flow_started = state.get("flow_started", False)
        steps = self.trainer.estimated_stepping_batches
        if self.autoencoder_fraction > (steps - 1) / steps and not self.flow_started:
            raise UserError(
                f"a run of {steps} steps leaves none for one of the two stages: make it longer, or change "
                "autoencoder_fraction"
            )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        self.flow_started = self.flow_started or progress(self.trainer, batch_idx) >= self.autoencoder_fraction
        if not self.flow_started:
            loss = self.error(x, self.autoencoder.encode(x)).mean()
            self.log_terms({"loss": loss, "reconstruction": loss}, len(x))
            return loss
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            h = self.autoencoder.encode(x)
        loss = -self.latent_log_density(h).mean()
        self.log_terms({"loss": loss, "latent_nll": loss}, len(x))
        return loss

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        """log p(h), in validation its negative as the loss, the squared error, and whether either is not finite."""
        log_density, error = self.density_and_error(x)
        values = {"reconstruction": error, "not_finite": (~(log_density - error).isfinite()).to(error)}
        if stage == "test":
            return {"latent_log_density": log_density, **values}
        # no checkpoint can be chosen by the density before there is one
        waiting = self.trainer.state.fn == TrainerFn.FITTING and self.autoencoder_fraction > 0 and not self.flow_started
        nll = torch.full_like(error, math.inf) if waiting else -log_density
        return {"loss": nll, "latent_nll": nll, **values}

    def describe_evaluation(self) -> str:
        return (
            f"latent_log_density: log p of {self.latent} numbers, nats, which is not a likelihood of images; "
            f"reconstruction: squared error summed over {self.dims} pixels in [0, 1]"
        )

    def default_optimizers(self) -> list[Optimizer]:
        learning = self.flow if self.pretrained else self
        # what has no gradient is not moved: the flow at first, the autoencoder then
        return [torch.optim.Adam(learning.parameters(), self.lr, fused=self.fused)]
