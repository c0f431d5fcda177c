"""Normalising flows of dequantised pixels, and what they can do whatever they are made of."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MaxMetric

from lit_generative.families.class_conditional import ClassConditional
from lit_generative.flows.bijections import Bijection, Inverse
from lit_generative.flows.dequantization import dequantize, quantize
from lit_generative.flows.prior import ClassNormal
from lit_generative.likelihoods import bits_per_dim, log_mean_exp, nan_to_neg_inf, standard_normal
from lit_generative.metrics.aggregation import Stats
from lit_generative.utils.interpolation import not_negative, spherical_interpolation


class FlowModel(ClassConditional):
    """A bijection from dequantised images v to z ~ N(0, I), and the bound on log P(x) that it gives.

        log p(v)  = log N(f(v); 0, I) + log |det df/dv|
        log P(x)  = log E_q(u|x)[p(v) / (256^D q(u|x))],  v = (k + u) / 256

    With classes, z ~ N(m_c, diag s_c^2), learned: f itself does not see the label.

    A model sets ``image_shape``, ``flow``, ``dequantization`` and ``test_k``, calls `add_prior`, and writes
    `default_optimizers`.

    Args:
        labels: Arguments of `ClassConditional`.
    """

    needs_float32 = "the noise of a level needs 16 bits below it"
    flow: Bijection
    dequantization: nn.Module
    test_k: int

    def __init__(self, **labels: Any) -> None:
        super().__init__(**labels)
        self.prior: ClassNormal | None = None
        self.inverse_error = MaxMetric()  # over the pixels of a test

    def add_prior(self) -> None:
        """Make the distributions of z given a class, where there are classes."""
        if self.classes:
            self.prior = ClassNormal(self.classes, self.dims)

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """Images in [0, 1] to z ``(B, D)``, and back, without p(z|c); with the log-determinants ``(B,)``, nats."""
        image, z = torch.zeros(2, *self.image_shape), torch.zeros(2, self.dims)
        return {"flow": (self.flow, (image,)), "inverse": (Inverse(self.flow), (z,))}

    # -- density -----------------------------------------------------------------------------------

    def log_density(self, v: Tensor, c: Tensor | None = None) -> Tensor:
        """log p(v) of dequantised images ``(B, C, H, W)`` in [0, 1), nats ``(B,)``; as exact as the log-determinant."""
        self.require_images(v)
        z, log_det = self.flow(v)
        if self.prior is not None:
            z, scaling = self.prior.standardize(z, self.one_hot(c, z))
            log_det = log_det + scaling
        return standard_normal(z) + log_det

    def log_weights(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """log p(v) - log q(u|x) - D log 256 for one draw of u ~ q(u|x), nats ``(B,)``."""
        self.require_images(x)
        v, log_det = self.dequantization(x)
        return self.log_density(v, c) + log_det

    def log_prob(self, x: Tensor, c: Tensor | None = None, k: int | None = None) -> Tensor:
        """Lower bound on log P(x) from ``k`` draws of the dequantisation (default: ``test_k``), nats ``(B,)``.

        A bound in expectation, by `average` of the draws. NaN and +inf count as -inf.
        """
        self.require_labels(len(x), c)
        return self.average(self.draws(x, k or self.test_k, c))

    def average(self, log_w: Tensor) -> Tensor:
        """The bound ``(B,)`` of draws ``(k, B)`` of `log_weights`, tighter with more (Burda et al., 2016, Eq. 8)."""
        return log_mean_exp(log_w, 0)

    def draws(self, x: Tensor, k: int, c: Tensor | None = None) -> Tensor:
        """``k`` times `log_weights`, ``(k, B)``, -inf in place of NaN and +inf."""
        return nan_to_neg_inf(torch.stack([self.log_weights(x, c) for _ in range(k)]))

    # -- latent space and sampling -----------------------------------------------------------------

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """z of the middle of the image's bin, ``(B, D)``; with a label (z - m_c) / s_c, as `decode` takes it."""
        self.require_images(x)
        z = self.flow(dequantize(x, torch.full_like(x, 0.5))[0])[0]
        return z if self.prior is None else self.prior.standardize(z, self.one_hot(c, z))[0]

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """The discrete image in whose bin f^-1(z) lies, ``(B, C, H, W)`` in [0, 1]; with a label, f^-1(m_c + s_c z)."""
        z = z if self.prior is None else self.prior.place(z, self.one_hot(c, z))
        return quantize(self.flow.inverse(z)[0])

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Images of z ~ N(0, temperature^2 I), ``(n, C, H, W)`` in [0, 1]; below 1 nearer to the mode, and not p(x)."""
        self.require_labels(n, c)
        return self.decode(not_negative(temperature) * self.noise(n, self.dims), c)

    @torch.no_grad()
    def interpolate(self, n: int, steps: int, c: Tensor | None = None) -> Tensor:
        """Images along ``n`` arcs between two draws of z, each with its label if any, ``(n * steps, C, H, W)``."""
        c = None if c is None else c.repeat_interleave(steps)
        return self.decode(spherical_interpolation(self.noise(2, n, self.dims), steps), c)

    # -- Lightning ---------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        nll = -self.log_weights(batch[0], self.hide_labels(batch[1])).mean()
        self.log_terms({"loss": nll, "bpd": bits_per_dim(-nll, self.dims)}, len(batch[0]))
        return nll

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        """The bound from one draw of the dequantisation, in test also from ``test_k``, and whether it is finite."""
        log_w = self.draws(x, self.test_k if stage == "test" else 1, c)
        bound = self.average(log_w)
        values = {"nll": -bound, "not_finite": (~bound.isfinite()).to(bound)}
        if stage == "val":
            return {"loss": -bound, **values}
        v = dequantize(x, torch.full_like(x, 0.5))[0]
        error = (self.flow.inverse(self.flow(v)[0])[0] - v).abs()
        self.inverse_error.update(error.nan_to_num(nan=math.inf))  # the metric would leave NaN out
        return {"elbo": log_w[0], **values}

    def summarize(self, stage: str, stats: dict[str, Stats]) -> dict[str, Tensor]:
        if stage == "val":
            return {}
        error = self.inverse_error.compute()
        self.inverse_error.reset()
        return {"inverse_error": error}

    def describe_evaluation(self) -> str:
        return (
            "elbo: one draw of the dequantisation; not_finite: fraction of images whose likelihood is NaN or infinite, "
            "counted as -inf; inverse_error: largest |f^-1(f(v)) - v| of any pixel (a level is 1/256); samples at "
            "temperature 1"
        )
