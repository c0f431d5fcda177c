r"""beta-VAE: learning basic visual concepts with a constrained variational framework (Higgins et al., 2017), ICLR.

    maximise  E_q[log p(x|z)] - beta KL(q(z|x) || p(z))                                      Eq. 4

beta weighs nats against nats: both terms are sums over pixels and latents, as the paper's own beta; its "normalised"
one is beta times latents / pixels. With beta = 1 this is the VAE.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.models.vae import VAE, Network


class BetaVAE(VAE):
    """A VAE trained on a weighted KL term; distributions, likelihood, ELBO and the choice of checkpoints are the VAE's.

    Args:
        beta: Weight of the KL term; the other arguments are those of :class:`VAE`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent: int = 10,
        network: Network = "mlp",
        hidden: Sequence[int] = (300, 300),
        activation: Literal["ReLU", "Tanh", "SiLU"] = "ReLU",
        likelihood: Literal["bernoulli", "logistic", "gaussian"] = "logistic",
        lr: float = 1e-3,
        lr_decay_start: float = 1.0,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
        test_k: Sequence[int] = (5, 50, 150),
        beta: float = 4.0,
        init_from: str | None = None,
    ) -> None:
        if beta < 0:
            raise UserError(f"beta must not be negative, got {beta}")
        super().__init__(
            image_shape,
            latent,
            network,
            hidden,
            activation,
            likelihood,
            lr,
            lr_decay_start,
            kl_warmup,
            free_bits,
            test_k,
        )
        self.beta = beta
        self.start_from(init_from)

    def penalised(self, kl: Tensor) -> Tensor:
        return self.beta * super().penalised(kl)
