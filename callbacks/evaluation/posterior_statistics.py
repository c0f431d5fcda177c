"""What each latent dimension of a VAE is used for."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributions import Normal

from callbacks._logging import log_image, run_folder
from callbacks._plots import bars
from callbacks.base import PerImageCallback
from lit_generative.errors import UserError
from lit_generative.metrics.disentanglement import kl_decomposition, total_correlation_bound
from lit_generative.protocols import HasPosterior, require


class PosteriorStatistics(PerImageCallback):
    """Log the parts of the KL term and the active units, and draw KL and deviation of every latent dimension.

    ``mutual_information`` + ``total_correlation`` + ``dimension_wise_kl`` = the KL of the images that they are
    estimated on; see `kl_decomposition`. ``total_correlation_bound`` is the part of the total correlation that pairs of
    dimensions show, over one draw of every image. A dimension is active where the posterior's mean varies by more than
    0.01 over the images (Burda et al., 2016, Section 5).

    Args:
        num_images: How many of the images the parts are estimated on; time grows with its square.
        every_n_epochs: In validation; 0: in test only.
        seed: Of the choice of images and the draws.
    """

    logged = (
        "mutual_information",
        "total_correlation",
        "dimension_wise_kl",
        "total_correlation_bound",
        "active_units",
    )

    def __init__(self, num_images: int = 1000, every_n_epochs: int = 1, seed: int = 0) -> None:
        if num_images < 2 or every_n_epochs < 0:
            raise UserError(
                f"PosteriorStatistics: num_images must be >= 2, every_n_epochs >= 0; got {num_images}, {every_n_epochs}"
            )
        self.num_images, self.every_n_epochs, self.seed = num_images, every_n_epochs, seed
        self._protocol = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, HasPosterior, self)

    def keep(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        q = model.q(x)
        return torch.cat([q.mean, q.stddev], 1)

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str, rows: Tensor) -> None:
        mu, sigma = rows.chunk(2, 1)
        count, chosen = len(rows), torch.randperm(len(rows))[: self.num_images]
        metrics: dict[str, Any] = {}
        if count > 1:
            q = Normal(mu[chosen], sigma[chosen], validate_args=False)  # a model may have diverged
            metrics |= kl_decomposition(q, q.sample(), count)
            metrics["total_correlation_bound"] = total_correlation_bound(mu + sigma * torch.randn_like(mu))
            if stage == "val":  # in test the model says so itself
                metrics["active_units"] = (mu.var(0) > 0.01).sum().float()
        # every rank has the same rows: sync_dist only spares Lightning's warning
        values = {f"{stage}/{name}": value.float().to(pl_module.device) for name, value in metrics.items()}
        pl_module.log_dict(values, sync_dist=True)
        self._protocol = (
            f"mutual_information (at most log {count:,}), total_correlation, dimension_wise_kl: of {len(chosen):,} of "
            f"{count:,} images, one draw of z each, q(z) from the {len(chosen):,} (Chen et al., 2018, unbiased weights)"
            "; total_correlation_bound: of pairs of dimensions (Chow & Liu, 1968), one draw of z of every image"
        )
        kl = (0.5 * (mu.square() + sigma.square() - 1) - sigma.log()).mean(0)
        order = kl.argsort(descending=True)
        shown = {"KL, nats": kl[order], "mean posterior deviation": sigma.mean(0)[order]}
        picture = bars(shown, [str(i) for i in order.tolist()], "latent dimension")
        log_image(trainer, run_folder(trainer), "posterior", picture)

    def describe_test(self) -> str:
        return self._protocol
