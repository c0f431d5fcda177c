r"""Importance weighted autoencoders (Burda, Grosse & Salakhutdinov, 2016), arXiv:1509.00519.

L_k = E_{z_1..z_k ~ q(z|x)} [ log 1/k sum_i w_i ],   w_i = p(x, z_i) / q(z_i|x)        Eq. 8
ELBO = L_1 <= L_k <= L_{k+1} <= log p(x)                                               Theorem 1
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.likelihoods import log_mean_exp
from lit_generative.models.vae import VAE, Network


class IWAE(VAE):
    """A VAE trained on the k-sample bound; distributions, sampling and evaluation are the VAE's.

    Args:
        k: Importance samples per image in training; the other arguments are those of :class:`VAE`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent: int = 50,
        network: Network = "mlp",
        hidden: Sequence[int] = (200, 200),
        activation: Literal["ReLU", "Tanh", "SiLU"] = "Tanh",
        likelihood: Literal["bernoulli", "logistic", "gaussian"] = "bernoulli",
        lr: float = 1e-3,
        lr_decay_start: float = 1.0,
        test_k: Sequence[int] = (5, 50, 150),
        k: int = 50,
        init_from: str | None = None,
    ) -> None:
        if k < 1:
            raise UserError(f"k must be positive, got {k}")
        super().__init__(
            image_shape, latent, network, hidden, activation, likelihood, lr, lr_decay_start, test_k=test_k
        )
        self.k = k
        self.start_from(init_from)

    def objective(self, x: Tensor) -> dict[str, Tensor]:
        """The bound L_k itself, so that the loss logged is its negative, and the ELBO, its mean log-weight.

        Autograd through the log-mean-exp gives the gradient of Eq. 14: draws weighted by their normalised w_i.
        """
        log_w = self.log_weights(x, self.q(x), self.k)
        return {"loss": -log_mean_exp(log_w, 0), "elbo": log_w.mean(0)}
