r"""High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022), arXiv:2112.10752.

    z ~ q(z|x)                                                   of a frozen VAE, the first stage, Section 3.1
    L_LDM     = E ||eps - eps_theta(z_t, t)||^2                  a DDPM of z_0 = z, Eq. 2
    log p(x) >= E_q[log p(x|z) - log q(z|x) + log p(z)]          log p(z) bounded by the DDPM in its turn

The first stage is our VAE, whose latents are vectors, and the network a residual one of vectors. Over all images, z has
about mean 0 and variance 1 by the VAE's own objective, and is taken as it is. The bound is one on the images: the
diffusion replaces the prior. Latents are continuous, so that p(z_0|z_1) is a density. Its variance is
beta_1, that of z_0 given z_1 where z ~ N(0, I); the smaller one of a `DDPM` is for discrete pixels.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from lit_generative.diffusion.elbo import Bound, variational_bound
from lit_generative.errors import UserError, UserTypeError
from lit_generative.families.class_conditional import ClassConditional
from lit_generative.families.two_stage import load_frozen_autoencoder
from lit_generative.models.ddpm import GaussianDiffusion
from lit_generative.nn.time_mlp import TimeMLP


class LatentDiffusion(ClassConditional, GaussianDiffusion):
    """Diffusion of the latents of a trained VAE.

    Args:
        autoencoder: Checkpoint of a VAE. What is saved afterwards holds it, and alone is enough.
        image_shape: (C, H, W) of the images.
        width: Units of the network's layers, an even number.
        depth: Its residual blocks.
        variance: Of p(z_s|z_t), see `GaussianDiffusion`.
        elbo_terms: Terms of the bound that `log_prob` draws for every image out of T - 1; 0: it takes them all.
        lr: Learning rate of Adam.
        lr_decay_start: Fraction of the run after which it falls linearly to 0; 1 keeps it constant.
        diffusion: Arguments of `ClassConditional` and `GaussianDiffusion`.

    Raises:
        TypeError: The autoencoder has no posterior and likelihood.
        ValueError: It is one of other images.
    """

    decoder_variance = "beta_1"

    def __init__(
        self,
        autoencoder: str | dict[str, Any],
        image_shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 256,
        depth: int = 4,
        variance: Literal["small", "large"] = "large",
        elbo_terms: int = 100,
        lr: float = 1e-3,
        lr_decay_start: float = 0.5,
        **diffusion: Any,
    ) -> None:
        if width < 4 or width % 2 or depth < 1:
            raise UserError(f"width must be even and >= 4, depth >= 1; got {width} and {depth}")
        # from here on the argument is the autoencoder's description and no longer its file
        vae, autoencoder = load_frozen_autoencoder(autoencoder, image_shape)
        if not (hasattr(vae, "q") and hasattr(vae, "p")):
            raise UserTypeError(
                "the autoencoder of a LatentDiffusion must have a posterior `q` and a likelihood `p`, as a VAE has: "
                f"{type(vae).__name__} has not"
            )
        super().__init__(variance=variance, elbo_terms=elbo_terms, lr=lr, lr_decay_start=lr_decay_start, **diffusion)
        if self.hparams["schedule"] == "cosine" and self.parameterization == "eps":
            raise UserError(
                "the cosine schedule leaves nothing of z at T, from which eps cannot tell z: choose parameterization v "
                "or x_0"
            )
        self.autoencoder: Any = vae
        self.image_shape, self.num_levels, self.data_shape = image_shape, vae.num_levels, (vae.latent,)
        self.denoiser = TimeMLP(vae.latent, width, depth, self.classes + 1 if self.classes else 0)
        self.likelihood_kind = self.log_prob_kind = f"{self.log_prob_kind}, one draw of z"

    # -- latents -----------------------------------------------------------------------------------

    def to_data(self, x: Tensor) -> Tensor:
        """A draw of q(z|x)."""
        with torch.no_grad():
            return self.autoencoder.q(x).sample()

    def to_images(self, x_0: Tensor) -> Tensor:
        return self.autoencoder.decode(x_0)

    def predict(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.denoiser(x_t, t - 1, self.labels_or_none(t, c)).to(x_t)

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """The denoiser: z_t, t - 1 ``(B,)`` int64 and labels if any, to its ``parameterization``; the autoencoder's."""
        t = torch.zeros(2, dtype=torch.long)
        own = {"denoiser": (self.denoiser, (torch.zeros(2, *self.data_shape), t, *([t] * (self.classes > 0))))}
        return own | self.autoencoder.programs()

    # -- log p(x) >= E_q[log p(x|z) - log q(z|x) + log p(z)] ---------------------------------------

    def bound(self, x: Tensor, c: Tensor | None = None, terms: int | None = None) -> Bound:
        self.require_images(x)
        q, c = self.autoencoder.q(x), c if self.classes else None
        z = q.sample()
        sigma = torch.as_tensor(self.schedule(1)[1]).to(z)

        def log_density(estimate: Tensor) -> Tensor:  # of z_0 given z_1
            return Normal(estimate, sigma, validate_args=False).log_prob(z).sum(1)

        drawn = self.elbo_terms if terms is None else terms
        latent = variational_bound(self.denoise, self.schedule, z, log_density, self.variance, drawn, c=c)
        log_p_x = self.autoencoder.p(z[None]).log_prob(x)[0]
        return latent._replace(decoder=latent.decoder + q.log_prob(z).sum(1) - log_p_x)

    # -- Lightning ---------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "LatentDiffusion":
        super().train(mode)
        self.autoencoder.eval()
        return self
