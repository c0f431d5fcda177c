r"""Importance weighted autoencoders (Burda, Grosse & Salakhutdinov, 2016), arXiv:1509.00519.

L_k = E_{z_1..z_k ~ q(z|x)} [ log 1/k sum_i w_i ],   w_i = p(x, z_i) / q(z_i|x)        Eq. 8
ELBO = L_1 <= L_k <= L_{k+1} <= log p(x)                                               Theorem 1
"""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.likelihoods import log_mean_exp
from lit_generative.models.vae import VAE


class IWAE(VAE):
    """A VAE trained on the k-sample bound; distributions, sampling and evaluation are the VAE's.

    Args:
        k: Importance samples per image in training.
        latent: Dimensions of z.
        hidden: Widths of the encoder's layers; the decoder mirrors them.
        activation: Nonlinearity between layers, a class of ``torch.nn``.
        likelihood: As of `VAE`.
        vae: Arguments of `VAE`, but for ``kl_warmup`` and ``free_bits``: L_k has no KL term.
    """

    def __init__(
        self,
        *,
        k: int = 50,
        latent: int = 50,
        hidden: Sequence[int] = (200, 200),
        activation: Literal["ReLU", "Tanh", "SiLU"] = "Tanh",
        likelihood: Literal["bernoulli", "logistic", "gaussian"] = "bernoulli",
        **vae: Any,
    ) -> None:
        if k < 1:
            raise UserError(f"k must be >= 1, got {k}")
        if vae.get("kl_warmup") or vae.get("free_bits"):
            raise UserError("the bound of IWAE has no KL term to weigh: leave kl_warmup and free_bits at 0")
        super().__init__(latent=latent, hidden=hidden, activation=activation, likelihood=likelihood, **vae)
        self.k = k

    def objective(self, x: Tensor, c: Tensor | None = None) -> dict[str, Tensor]:
        """The bound L_k itself, so that the loss logged is its negative, and the ELBO, its mean log-weight.

        Autograd through the log-mean-exp gives the gradient of Eq. 14: draws weighted by their normalised w_i.
        """
        log_w = self.log_weights(x, self.q(x, c), self.k, c)
        return {"loss": -log_mean_exp(log_w, 0), "elbo": log_w.mean(0)}
