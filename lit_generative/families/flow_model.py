"""Normalising flows of dequantised pixels, and what they can do whatever they are made of."""

import math

import torch
from torch import Tensor, nn
from torchmetrics import MaxMetric

from lit_generative.flows.bijections import Bijection, Inverse
from lit_generative.flows.dequantization import dequantize, quantize
from lit_generative.generative_model import GenerativeModel
from lit_generative.likelihoods import bits_per_dim, log_mean_exp, nan_to_neg_inf, standard_normal
from lit_generative.metrics.aggregation import Stats
from lit_generative.utils.interpolation import not_negative, spherical_interpolation


class FlowModel(GenerativeModel):
    """A bijection from dequantised images v to z ~ N(0, I), and the bound on log P(x) that it gives.

        log p(v)  = log N(f(v); 0, I) + log |det df/dv|
        log P(x)  = log E_q(u|x)[p(v) / (256^D q(u|x))],  v = (k + u) / 256

    A model sets ``flow``, ``dequantization``, ``image_shape`` and ``test_k``, and writes `default_optimizers`.
    """

    needs_float32 = "the noise of a level needs 16 bits below it"
    flow: Bijection
    dequantization: nn.Module
    test_k: int

    def __init__(self) -> None:
        super().__init__()
        self.inverse_error = MaxMetric()  # over the pixels of a test

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """Images in [0, 1] to z ``(B, D)``, and back; with the log-determinants ``(B,)``, nats."""
        image, z = torch.zeros(2, *self.image_shape), torch.zeros(2, self.dims)
        return {"flow": (self.flow, (image,)), "inverse": (Inverse(self.flow), (z,))}

    # -- density -----------------------------------------------------------------------------------

    def log_density(self, v: Tensor) -> Tensor:
        """log p(v) of dequantised images ``(B, C, H, W)`` in [0, 1), nats ``(B,)``; as exact as the log-determinant."""
        self.require_images(v)
        z, log_det = self.flow(v)
        return standard_normal(z) + log_det

    def log_weights(self, x: Tensor) -> Tensor:
        """log p(v) - log q(u|x) - D log 256 for one draw of u ~ q(u|x), nats ``(B,)``."""
        self.require_images(x)
        v, log_det = self.dequantization(x)
        return self.log_density(v) + log_det

    def log_prob(self, x: Tensor, c: Tensor | None = None, k: int | None = None) -> Tensor:
        """Lower bound on log P(x) from ``k`` draws of the dequantisation (default: ``test_k``), nats ``(B,)``.

        A bound in expectation, by `average` of the draws. NaN and +inf count as -inf.
        """
        return self.average(self.draws(x, k or self.test_k))

    def average(self, log_w: Tensor) -> Tensor:
        """The bound ``(B,)`` of draws ``(k, B)`` of `log_weights`, tighter with more (Burda et al., 2016, Eq. 8)."""
        return log_mean_exp(log_w, 0)

    def draws(self, x: Tensor, k: int) -> Tensor:
        """``k`` times `log_weights`, ``(k, B)``, -inf in place of NaN and +inf."""
        return nan_to_neg_inf(torch.stack([self.log_weights(x) for _ in range(k)]))

    # -- latent space and sampling -----------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """z of the middle of the image's bin, ``(B, D)``."""
        self.require_images(x)
        return self.flow(dequantize(x, torch.full_like(x, 0.5))[0])[0]

    def decode(self, z: Tensor) -> Tensor:
        """The discrete image in whose bin f^-1(z) lies, ``(B, C, H, W)`` in [0, 1]."""
        return quantize(self.flow.inverse(z)[0])

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Images of z ~ N(0, temperature^2 I), ``(n, C, H, W)`` in [0, 1]; below 1 nearer to the mode, and not p(x)."""
        return self.decode(not_negative(temperature) * self.noise(n, self.dims))

    @torch.no_grad()
    def interpolate(self, n: int, steps: int, c: Tensor | None = None) -> Tensor:
        """Images along ``n`` arcs between two draws of z, ``(n * steps, C, H, W)`` in [0, 1]."""
        return self.decode(spherical_interpolation(self.noise(2, n, self.dims), steps))

    # -- Lightning ---------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        nll = -self.log_weights(batch[0]).mean()
        self.log_terms({"loss": nll, "bpd": bits_per_dim(-nll, self.dims)}, len(batch[0]))
        return nll

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        """The bound from one draw of the dequantisation, in test also from ``test_k``, and whether it is finite."""
        log_w = self.draws(x, self.test_k if stage == "test" else 1)
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
