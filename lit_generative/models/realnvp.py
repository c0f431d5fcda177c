r"""Density estimation using Real NVP (Dinh, Sohl-Dickstein & Bengio, 2017), arXiv:1605.08803.

    log p(v)  = log N(f(v); 0, I) + log |det df/dv|                                             Eq. 3
    f         = a stack of affine couplings: z_b = v_b,  z_1-b = v_1-b exp(s(v_b)) + t(v_b)     Eq. 9
    log P(x)  = log E_q(u|x)[p(v) / (256^D q(u|x))],  v = (k + u) / 256                         Section 4.1

p(v) is exact for the dequantised image v; the mass of the discrete image x = k/255 is bounded from below by draws of u.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MaxMetric

from lit_generative.errors import UserError
from lit_generative.flows.bijections import Bijection, Chain, Flatten, Inverse, Split, Squeeze
from lit_generative.flows.coupling import NORMS, Coupling, Halves, checkerboard, dense
from lit_generative.flows.dequantization import (
    Logit,
    UniformDequantization,
    VariationalDequantization,
    dequantize,
    quantize,
)
from lit_generative.generative_model import GenerativeModel
from lit_generative.likelihoods import bits_per_dim, log_mean_exp, nan_to_neg_inf, standard_normal
from lit_generative.metrics.aggregation import Moments
from lit_generative.nn.resnet import WeightNormResNet
from lit_generative.utils.interpolation import not_negative, spherical_interpolation
from lit_generative.utils.rng import batch_rng

Shape = tuple[int, int, int]


def multiscale(shape: Shape, scales: int, width: int, depth: int, norm: str, alternate: bool) -> list[Bijection]:
    """Checkerboards x3, squeeze, channels x3, half of them factored out, at every scale; checkerboards x4 at the last.

    From images to vectors (Section 3.6). Conditioners have ``depth`` residual blocks of ``width`` channels, doubled
    after every squeeze.
    """

    def couplings(masks: list[Any], channels: int, width: int) -> list[Bijection]:
        layers: list[Bijection] = []
        for mask in masks:
            kept, changed = mask.sizes(channels)
            conditioner = WeightNormResNet(kept, 2 * changed, width, depth)
            layers += [*(normalise(channels) for normalise in NORMS[norm]), Coupling(mask, conditioner, channels)]
        return layers

    c, h, w = shape
    turns = [alternate and i % 2 == 1 for i in range(4)]
    boards = [checkerboard(h, w, turn) for turn in turns]
    if scales == 1:
        return [*couplings(boards, c, width), Flatten(shape)]
    squeezed, left = (4 * c, h // 2, w // 2), (2 * c, h // 2, w // 2)
    return [
        *couplings(boards[:3], c, width),
        Squeeze(),
        *couplings([Halves(turn) for turn in turns[:3]], 4 * c, 2 * width),
        Split(squeezed, Chain(*multiscale(left, scales - 1, 2 * width, depth, norm, alternate))),
    ]


class RealNVP(GenerativeModel):
    """Normalising flow of affine couplings, on logits of dequantised pixels.

    Args:
        image_shape: (C, H, W) of the images.
        stack: ``multiscale`` of convolutional couplings, or ``dense`` couplings of all pixels in a row.
        scales: Resolutions of the multi-scale stack.
        couplings: Couplings of the dense stack; those of the other follow from its scales.
        width: Channels (at the first resolution) or units of the conditioners.
        depth: Residual blocks or hidden layers of the conditioners.
        norm: Normalisation before every coupling: the paper's running ``batch`` statistics, ``act`` norm, ``none``.
        alternate: Whether masks alternate; without it half of the numbers are never transformed but by the norm.
        dequantization: ``uniform``, or ``variational`` by a small flow of its own.
        alpha: Distance from 0 and 1 before the logit; the paper's is 0.05, for backgrounds that are not black.
        lr: Learning rate of Adam.
        lr_decay_start: Fraction of the run after which the learning rate falls linearly to 0; 1 keeps it constant.
        weight_decay: L2 penalty on the scales of weight normalisation (Section 4.1).
        test_k: Draws of the dequantisation behind ``test``'s bound.
        init_from: Weights to start from, see `start_from`.
    """

    needs_float32 = "the noise of a level needs 16 bits below it"

    def __init__(
        self,
        image_shape: Shape = (1, 28, 28),
        stack: Literal["multiscale", "dense"] = "multiscale",
        scales: int = 2,
        couplings: int = 8,
        width: int = 16,
        depth: int = 2,
        norm: Literal["batch", "act", "none"] = "batch",
        alternate: bool = True,
        dequantization: Literal["uniform", "variational"] = "uniform",
        alpha: float = 1e-5,
        lr: float = 1e-3,
        lr_decay_start: float = 1.0,
        weight_decay: float = 5e-5,
        test_k: int = 8,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        if min(scales, couplings, width, depth, test_k) < 1:
            raise UserError(
                "scales, couplings, width, depth and test_k start at 1; "
                f"got {scales}, {couplings}, {width}, {depth}, {test_k}"
            )
        if not (0 < alpha < 0.5 and 0 <= lr_decay_start <= 1 and weight_decay >= 0):
            raise UserError(
                "alpha lies between 0 and 0.5, lr_decay_start in [0, 1], weight_decay is not negative; "
                f"got {alpha}, {lr_decay_start}, {weight_decay}"
            )
        c, h, w = image_shape
        halvings = scales - 1 if stack == "multiscale" else 0
        if h % 2**halvings or w % 2**halvings:
            raise UserError(f"images of {h}x{w} pixels cannot be halved {halvings} times: set fewer scales")
        self.save_hyperparameters(ignore=["init_from"])
        self.image_shape, self.dims = image_shape, math.prod(image_shape)
        self.lr, self.lr_decay_start, self.weight_decay, self.test_k = lr, lr_decay_start, weight_decay, test_k
        self.likelihood_kind = self.log_prob_kind = f"bound, {test_k} draws of {dequantization} dequantisation"
        if stack == "dense":
            layers = [Flatten(image_shape), *dense(self.dims, couplings, width, depth, norm, alternate)]
        else:
            layers = multiscale(image_shape, scales, width, depth, norm, alternate)
        self.flow = Chain(Logit(alpha), *layers)
        self.dequantization: nn.Module = UniformDequantization()
        if dequantization == "variational":
            masks = [checkerboard(h, w, keep_odd=i % 2 == 1) for i in range(4)]
            nets = [WeightNormResNet(2 * c, 2 * c, width, depth) for _ in masks]
            self.dequantization = VariationalDequantization(
                *(Coupling(mask, net, c) for mask, net in zip(masks, nets, strict=True))
            )
        self._tested = 0  # images that the last test saw
        # the bound from one draw, that from all, and whether it is no number, of every image in validation or test
        self.terms = Moments(3)
        self.inverse_error = MaxMetric()
        self.start_from(init_from)

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """Images in [0, 1] to z ``(B, D)``, and back; with the log-determinants ``(B,)``, nats."""
        image, z = torch.zeros(2, *self.image_shape), torch.zeros(2, self.dims)
        return {"flow": (self.flow, (image,)), "inverse": (Inverse(self.flow), (z,))}

    # -- density -----------------------------------------------------------------------------------

    def log_density(self, v: Tensor) -> Tensor:
        """log p(v) of dequantised images ``(B, C, H, W)`` in [0, 1), nats ``(B,)``, exact (Eq. 3)."""
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

        A bound in expectation, tighter as ``k`` grows. What is no number, or +inf, counts as -inf.
        """
        return log_mean_exp(self.draws(x, k or self.test_k), 0)

    def draws(self, x: Tensor, k: int) -> Tensor:
        """``k`` times `log_weights`, ``(k, B)``, -inf for what is no number or +inf."""
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

    def evaluate(self, x: Tensor, batch_idx: int, k: int) -> None:
        with batch_rng(self, batch_idx):
            log_w = self.draws(x, k)
        bound = log_mean_exp(log_w, 0)
        self.terms.update(torch.stack([log_w[0], bound, (~bound.isfinite()).to(bound)], -1))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(batch[0], batch_idx, k=1)

    def on_validation_epoch_end(self) -> None:
        self._log("val", self.terms.compute())

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x = batch[0]
        self.evaluate(x, batch_idx, self.test_k)
        v = dequantize(x, torch.full_like(x, 0.5))[0]
        error = (self.flow.inverse(self.flow(v)[0])[0] - v).abs()
        self.inverse_error.update(error.nan_to_num(nan=math.inf))  # the metric would leave NaN out

    def on_test_epoch_end(self) -> None:
        moments = self.terms.compute()
        self._tested = int(moments[3, 0])
        self._log("test", moments)
        error = {"elbo": moments[2, 0].float(), "nll": moments[2, 1].float()}
        metrics = {f"{name}_stderr": value for name, value in error.items()}
        metrics |= {"bpd_stderr": bits_per_dim(-error["nll"], self.dims), "inverse_error": self.inverse_error.compute()}
        self.inverse_error.reset()
        self.log_dict({f"test/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def _log(self, stage: str, moments: Tensor) -> None:
        """The means of `terms`, summed over ranks already: sync_dist only spares Lightning's warning."""
        elbo, bound, not_finite = moments[0].float()
        self.terms.reset()
        metrics = {"nll": -bound, "bpd": bits_per_dim(bound, self.dims), "not_finite": not_finite}
        metrics |= {"loss": -elbo} if stage == "val" else {"elbo": elbo}
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def describe_test(self) -> str:
        return (
            f"{self._tested:,} images; nats per image over {self.dims} pixels of 256 levels, ± standard error over "
            f"images; elbo: one draw of the dequantisation; nll, bpd: {self.likelihood_kind}; not_finite: fraction of "
            f"images whose likelihood is no number, counted as -inf; inverse_error: largest |f^-1(f(v)) - v| of any "
            f"pixel (a level is 1/256); samples at temperature 1"
        )

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Latents ``z`` and the bound ``log_prob`` of every image, with its label ``c``."""
        x, c = batch
        with batch_rng(self, batch_idx):
            return {"z": self.encode(x), "log_prob": self.log_prob(x), "c": c}

    def configure_optimizers(self) -> Any:
        scales = {name for name, _ in self.named_parameters() if name.endswith("parametrizations.weight.original0")}
        groups = [
            {"params": [p for name, p in self.named_parameters() if (name in scales) is scale], "weight_decay": decay}
            for scale, decay in ((False, 0.0), (True, self.weight_decay))
        ]
        return self.with_decay(
            torch.optim.Adam([g for g in groups if g["params"]], self.lr, fused=self.fused), self.lr_decay_start
        )
