"""Whether latent dimensions correspond to the factors that images were made from."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.base import PerImageCallback, datamodule_of
from lit_generative.errors import require_at_least
from lit_generative.metrics.disentanglement import factor_vae_score, mutual_information_gap
from lit_generative.protocols import HasFactors, HasPosterior, require_data


class Disentanglement(PerImageCallback):
    """Log ``factor_vae_score`` and ``mig`` of a VAE in test, on data whose factors are known.

    The first uses posterior means, of the dimensions whose mean posterior variance is below 0.95: the others are the
    prior. The second uses one draw of z for every image, in 20 bins.

    Args:
        votes: Votes of the first, for its classifier and as many again to test it.
        images: Images of each vote; 100 in the paper.
        seed: Seed of the draws.
    """

    protocol = HasPosterior
    reported: ClassVar = {"factor_vae_score": ".3f", "mig": ".3f"}

    def __init__(self, votes: int = 800, images: int = 100, seed: int = 0) -> None:
        super().__init__(every_n_epochs=0, seed=seed)
        require_at_least(self, 1, votes=votes)
        require_at_least(self, 2, images=images)
        self.votes, self.images = votes, images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        data = datamodule_of(trainer)
        require_data(data, HasFactors, self, "choose data whose factors are known, such as Sprites")
        self._factors = data.factors

    def measure(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        q = model.q(x)
        return torch.cat([q.mean, q.stddev], 1)

    def summarize(self, trainer: Trainer, pl_module: LightningModule, stage: str, rows: Tensor) -> None:
        mu, sigma = rows.chunk(2, 1)
        factors = self._factors[: len(rows)]  # fewer with limit_test_batches
        used = sigma.square().mean(0) < 0.95
        metrics = {
            "factor_vae_score": factor_vae_score(mu, factors, self.votes, self.images, used, self.seed),
            "mig": mutual_information_gap(mu + sigma * torch.randn_like(mu), factors),
        }
        self.log_numbers(pl_module, stage, metrics)

    def describe_test(self) -> str:
        return (
            f"factor_vae_score: Kim & Mnih (2018), {self.votes} votes of {self.images} posterior means to learn and to "
            "check, dimensions of mean variance below 0.95; mig: Chen et al. (2018), one draw of z an image, 20 bins"
        )
