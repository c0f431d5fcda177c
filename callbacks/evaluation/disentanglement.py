"""Whether latent dimensions are the factors that the images were made from."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.base import PerImageCallback
from lit_generative.errors import UserError
from lit_generative.metrics.disentanglement import factor_vae_score, mutual_information_gap
from lit_generative.protocols import HasFactors, HasPosterior, require, require_data


class Disentanglement(PerImageCallback):
    """Log ``factor_vae_score`` and ``mig`` of a VAE in test, on data whose images' factors are known (``factors``).

    The first is taken over posterior means, of the dimensions whose mean posterior variance is below 0.95: the others
    are the prior. The second is over one draw of z of every image, in 20 bins.

    Args:
        votes: Of the first, to learn from and again to check; ``images`` are looked at for each.
        images: The same number as in the paper, 100.
        seed: Of the draws.
    """

    every_n_epochs = 0

    def __init__(self, votes: int = 800, images: int = 100, seed: int = 0) -> None:
        if votes < 1 or images < 2:
            raise UserError(f"Disentanglement: votes must be >= 1, images >= 2; got {votes}, {images}")
        self.votes, self.images, self.seed = votes, images, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, HasPosterior, self)
        data: Any = getattr(trainer, "datamodule", None)
        require_data(data, HasFactors, self, "choose data whose factors are known, as Sprites")
        self._factors = data.factors

    def keep(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        q = model.q(x)
        return torch.cat([q.mean, q.stddev], 1)

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str, rows: Tensor) -> None:
        mu, sigma = rows.chunk(2, 1)
        factors = self._factors[: len(rows)]  # fewer where the test was limited
        used = sigma.square().mean(0) < 0.95
        metrics = {
            "factor_vae_score": factor_vae_score(mu, factors, self.votes, self.images, used, self.seed),
            "mig": mutual_information_gap(mu + sigma * torch.randn_like(mu), factors),
        }
        pl_module.log_dict({f"test/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def describe_test(self) -> str:
        return (
            f"factor_vae_score: Kim & Mnih (2018), {self.votes} votes of {self.images} posterior means to learn and to "
            "check, dimensions of mean variance below 0.95; mig: Chen et al. (2018), one draw of z an image, 20 bins"
        )
