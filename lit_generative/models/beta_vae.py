r"""beta-VAE: learning basic visual concepts with a constrained variational framework (Higgins et al., 2017), ICLR.

    maximise  E_q[log p(x|z)] - beta KL(q(z|x) || p(z))                                      Eq. 4

beta weighs nats against nats: both terms are sums over pixels and latents, as the paper's own beta; its "normalised"
one is beta times latents / pixels. With beta = 1 this is the VAE.
"""

from typing import Any

from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.models.vae import VAE


class BetaVAE(VAE):
    """A VAE trained on a weighted KL term; distributions, likelihood, ELBO and the choice of checkpoints are the VAE's.

    Args:
        beta: Weight of the KL term.
        vae: Arguments of `VAE`.
    """

    def __init__(self, *, beta: float = 4.0, **vae: Any) -> None:
        if beta < 0:
            raise UserError(f"beta must be >= 0, got {beta}")
        super().__init__(**vae)
        self.beta = beta

    def penalised(self, kl: Tensor) -> Tensor:
        return self.beta * super().penalised(kl)
