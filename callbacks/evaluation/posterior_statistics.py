"""How a VAE uses its latent dimensions."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributions import Normal

from callbacks._logging import log_image, run_folder
from callbacks._plots import bars
from callbacks.base import PerImageCallback
from lit_generative.errors import UserTypeError, require_at_least
from lit_generative.metrics.disentanglement import kl_decomposition, total_correlation_bound
from lit_generative.protocols import HasComponents, HasPosterior


class PosteriorStatistics(PerImageCallback):
    """Log the parts of the KL term and the active units, and plot KL and deviation of every latent dimension.

    ``mutual_information`` + ``total_correlation`` + ``dimension_wise_kl`` = KL, over the images that they are estimated
    on; see `kl_decomposition`. ``total_correlation_bound`` is the part of the total correlation that is between pairs
    of dimensions, over one draw for every image. A dimension is active if the variance of its posterior mean over the
    images is above 0.01 (Burda et al., 2016, Section 5).

    Args:
        num_images: Images, at most, that the parts are estimated on; time grows with its square.
        evaluation: Arguments of `EvaluationCallback`.

    Raises:
        TypeError: The model's prior is another than N(0, I).
    """

    protocol = HasPosterior
    reported: ClassVar = {"mutual_information": ".2f", "total_correlation": ".2f", "active_units": ".0f"}
    logged = (
        "mutual_information",
        "total_correlation",
        "dimension_wise_kl",
        "total_correlation_bound",
        "active_units",
    )

    def __init__(self, num_images: int = 1000, **evaluation: Any) -> None:
        super().__init__(**evaluation)
        require_at_least(self, 2, num_images=num_images)
        self.num_images, self._protocol = num_images, ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if isinstance(pl_module, HasComponents):
            raise UserTypeError(
                f"PosteriorStatistics takes the KL to N(0, I) apart, but the prior of {type(pl_module).__name__} is a "
                "mixture: remove the callback"
            )

    def measure(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        q = model.q(x, c) if getattr(model, "classes", 0) else model.q(x)  # as `nll` is given the class
        return torch.cat([q.mean, q.stddev], 1)

    def summarize(self, trainer: Trainer, pl_module: LightningModule, stage: str, rows: Tensor) -> None:
        mu, sigma = rows.chunk(2, 1)
        count, chosen = len(rows), torch.randperm(len(rows))[: self.num_images]
        metrics: dict[str, Any] = {}
        if count > 1:
            q = Normal(mu[chosen], sigma[chosen], validate_args=False)  # a model may have diverged
            metrics |= kl_decomposition(q, q.sample(), count)
            metrics["total_correlation_bound"] = total_correlation_bound(mu + sigma * torch.randn_like(mu))
            if stage == "val":  # in test the model logs it
                metrics["active_units"] = (mu.var(0) > 0.01).sum().float()
        values = {name: value.float().to(pl_module.device) for name, value in metrics.items()}
        self.log_numbers(pl_module, stage, values)
        self._protocol = (
            f"mutual_information (at most log {count:,}), total_correlation, dimension_wise_kl: of {len(chosen):,} of "
            f"{count:,} images, one draw of z each, q(z) from the {len(chosen):,} (Chen et al., 2018, unbiased weights)"
            "; total_correlation_bound: of pairs of dimensions (Chow & Liu, 1968), one draw of z of every image"
        )
        kl = (0.5 * (mu.square() + sigma.square() - 1) - sigma.log()).mean(0)
        order = kl.argsort(descending=True)
        shown = {"KL, nats": kl[order], "mean posterior deviation": sigma.mean(0)[order]}
        plot = bars(shown, [str(i) for i in order.tolist()], "latent dimension")
        log_image(trainer, run_folder(trainer), "posterior", plot)

    def describe_test(self) -> str:
        return self._protocol
