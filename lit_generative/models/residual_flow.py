r"""Residual flows for invertible generative modeling (Chen, Behrmann, Duvenaud & Jacobsen, 2019), arXiv:1906.02735.

    z        = x + g(x),  Lip(g) < 1                                                         Eq. 2
    log p(x) = log p(z) + E[sum_(k <= N) (-1)^(k+1) / k  v' J^k v / P(N >= k)]               Eq. 6
               v ~ N(0, I),  N ~ 2 + Geometric(1/2),  J = dg/dx

Training follows an unbiased estimate of the log-likelihood, its gradient by Eq. 8 (`lit_generative.flows.residual`).
The mass of a discrete image is bounded as RealNVP's, see `FlowModel`, but by the mean of log p over draws, and not by
the logarithm of the mean of p, which would be too high where log p is an estimate.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_generative.errors import UserError
from lit_generative.families.flow_model import FlowModel
from lit_generative.flows.bijections import ActNorm, Bijection, Chain, Flatten, Squeeze
from lit_generative.flows.dequantization import Logit, UniformDequantization
from lit_generative.flows.residual import Residual
from lit_generative.metrics.aggregation import Stats
from lit_generative.nn.lipschitz import lipschitz_convs, renew_norms

Shape = tuple[int, int, int]


class Transform(nn.Module):
    """A flow without its log-determinant."""

    def __init__(self, chain: Any) -> None:
        super().__init__()
        self.bijections = chain.bijections

    def forward(self, v: Tensor) -> Tensor:
        for bijection in self.bijections:
            v = v + bijection.g(v) if isinstance(bijection, Residual) else bijection(v)[0]
        return v


class ResidualFlow(FlowModel):
    """Normalising flow of residual blocks, on logits of dequantised pixels.

    Args:
        image_shape: (C, H, W) of the images.
        scales: Resolutions; pixels become channels between them, and none are factored out.
        squeeze_first: Whether pixels become channels before the first block too, for a quarter of the time.
        blocks: Residual blocks at every resolution, each after an act norm.
        width: Channels within a block.
        coefficient: Bound on the Lipschitz constant of every layer, below 1.
        trace: The log-determinant's estimate: ``unbiased``, or ``truncated`` after the terms always computed.
        train_terms: Terms of the series that are always computed in training.
        eval_terms: The same in evaluation.
        alpha: Distance from 0 and 1 before the logit.
        lr: Learning rate of Adam.
        lr_decay_start: Fraction of the run after which the learning rate falls linearly to 0; 1 keeps it constant.
        test_k: Draws of the dequantisation, v and N over which the bound of ``test`` is the mean.
        labels: Arguments of `ClassConditional`.
    """

    def __init__(
        self,
        image_shape: Shape = (1, 28, 28),
        scales: int = 3,
        squeeze_first: bool = False,
        blocks: int = 4,
        width: int = 32,
        coefficient: float = 0.98,
        trace: Literal["unbiased", "truncated"] = "unbiased",
        train_terms: int = 2,
        eval_terms: int = 20,
        alpha: float = 1e-5,
        lr: float = 1e-3,
        lr_decay_start: float = 1.0,
        test_k: int = 1,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        if min(scales, blocks, width, test_k) < 1:
            raise UserError(f"scales, blocks, width and test_k must be >= 1; got {scales}, {blocks}, {width}, {test_k}")
        if not (0 < coefficient < 1 and 0 < alpha < 0.5 and 0 <= lr_decay_start <= 1):
            raise UserError(
                "coefficient must be in (0, 1), alpha in (0, 0.5), lr_decay_start in [0, 1]; "
                f"got {coefficient}, {alpha}, {lr_decay_start}"
            )
        c, h, w = image_shape
        halvings = scales - 1 + squeeze_first
        if h % 2**halvings or w % 2**halvings:
            raise UserError(f"images of {h}x{w} pixels cannot be halved {halvings} times: set fewer scales")
        self.save_hyperparameters()
        self.image_shape, self.lr, self.lr_decay_start, self.test_k = image_shape, lr, lr_decay_start, test_k
        self.likelihood_kind = self.log_prob_kind = (
            f"bound, {test_k} draws of uniform dequantisation, {trace} log-determinant, {eval_terms} terms and more"
        )
        layers: list[Bijection] = [Logit(alpha)]
        for scale in range(scales):
            halved = scale + squeeze_first
            shape = (c * 4**halved, h // 2**halved, w // 2**halved)
            layers += [Squeeze()] * (scale > 0 or squeeze_first)
            for i in range(blocks):
                g = lipschitz_convs(shape, width, coefficient, first=scale == i == 0)
                layers += [ActNorm(shape[0]), Residual(g, trace, train_terms, eval_terms)]
        self.flow = Chain(*layers, ActNorm(shape[0]), Flatten(shape))
        self.dequantization = UniformDequantization()
        self.add_prior()

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """Images in [0, 1] to z ``(B, D)``; log-determinant and inverse are loops, of which there is no program."""
        return {"flow": (Transform(self.flow), (torch.zeros(2, *self.image_shape),))}

    def average(self, log_w: Tensor) -> Tensor:
        """The mean of ``(k, B)``: that of exponentials of estimates would be too high."""
        return log_w.mean(0)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, after which the blocks are contractions again."""
        super().optimizer_step(*args, **kwargs)
        renew_norms(self.flow)

    def summarize(self, stage: str, stats: dict[str, Stats]) -> dict[str, Tensor]:
        numbers = super().summarize(stage, stats)
        if stage == "test":  # of the last inverse, the most of any block
            most = max(block.iterated for block in self.modules() if isinstance(block, Residual))
            numbers["inverse_iterations"] = torch.tensor(float(most), device=self.device)
        return numbers

    def default_optimizers(self) -> list[Optimizer]:
        return [torch.optim.Adam(self.parameters(), self.lr, fused=self.fused)]
