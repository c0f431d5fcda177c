r"""Density estimation using Real NVP (Dinh, Sohl-Dickstein & Bengio, 2017), arXiv:1605.08803.

    log p(v)  = log N(f(v); 0, I) + log |det df/dv|                                             Eq. 3
    f         = a stack of affine couplings: z_b = v_b,  z_1-b = v_1-b exp(s(v_b)) + t(v_b)     Eq. 9
    log P(x)  = log E_q(u|x)[p(v) / (256^D q(u|x))],  v = (k + u) / 256                         Section 4.1

p(v) is exact for the dequantised image v; the mass of the discrete image x = k/255 is bounded from below by draws of u.
"""

from typing import Any, Literal

import torch
from torch.optim import Optimizer

from lit_generative.errors import UserError
from lit_generative.families.flow_model import FlowModel
from lit_generative.flows.bijections import Bijection, Chain, Flatten, Split, Squeeze
from lit_generative.flows.coupling import NORMS, Coupling, Halves, checkerboard, dense
from lit_generative.flows.dequantization import Logit, UniformDequantization, VariationalDequantization
from lit_generative.nn.resnet import WeightNormResNet

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


class RealNVP(FlowModel):
    """Normalising flow of affine couplings, on logits of dequantised pixels.

    Args:
        image_shape: (C, H, W) of the images.
        stack: ``multiscale``: the paper's convolutional couplings; ``fully_connected``: couplings of pixel vectors.
        scales: Resolutions of the multi-scale stack.
        couplings: Couplings of the fully connected stack; those of the other follow from its scales.
        width: Channels (at the first resolution) or units of the conditioners.
        depth: Residual blocks or hidden layers of the conditioners.
        norm: Normalisation before every coupling: the paper's running ``batch`` statistics, ``act`` norm, ``none``.
        alternate: Whether masks alternate; without it half of the numbers are never transformed but by the norm.
        dequantization: ``uniform``, or ``variational`` by a small flow of its own.
        alpha: Distance from 0 and 1 before the logit; the paper's is 0.05, for backgrounds that are not black.
        lr: Learning rate of Adam.
        lr_decay_start: Fraction of the run after which the learning rate falls linearly to 0; 1 keeps it constant.
        weight_decay: L2 penalty on the scales of weight normalisation (Section 4.1).
        test_k: Draws of the dequantisation for the bound that ``test`` reports.
        labels: Arguments of `ClassConditional`.
    """

    compiled_functions = ("log_weights",)
    compiled_evaluations = ("log_weights",)

    def __init__(
        self,
        image_shape: Shape = (1, 28, 28),
        stack: Literal["multiscale", "fully_connected"] = "multiscale",
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
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        if min(scales, couplings, width, depth, test_k) < 1:
            raise UserError(
                "scales, couplings, width, depth and test_k must be >= 1; "
                f"got {scales}, {couplings}, {width}, {depth}, {test_k}"
            )
        if not (0 < alpha < 0.5 and 0 <= lr_decay_start <= 1 and weight_decay >= 0):
            raise UserError(
                "alpha must be in (0, 0.5), lr_decay_start in [0, 1], weight_decay >= 0; "
                f"got {alpha}, {lr_decay_start}, {weight_decay}"
            )
        c, h, w = image_shape
        halvings = scales - 1 if stack == "multiscale" else 0
        if h % 2**halvings or w % 2**halvings:
            raise UserError(f"images of {h}x{w} pixels cannot be halved {halvings} times: set fewer scales")
        self.save_hyperparameters()
        self.image_shape = image_shape
        self.lr, self.lr_decay_start, self.weight_decay, self.test_k = lr, lr_decay_start, weight_decay, test_k
        self.likelihood_kind = self.log_prob_kind = f"bound, {test_k} draws of {dequantization} dequantisation"
        if stack == "fully_connected":
            layers = [Flatten(image_shape), *dense(self.dims, couplings, width, depth, norm, alternate)]
        else:
            layers = multiscale(image_shape, scales, width, depth, norm, alternate)
        self.flow = Chain(Logit(alpha), *layers)
        self.add_prior()
        self.dequantization = UniformDequantization()
        if dequantization == "variational":
            masks = [checkerboard(h, w, keep_odd=i % 2 == 1) for i in range(4)]
            nets = [WeightNormResNet(2 * c, 2 * c, width, depth) for _ in masks]
            self.dequantization = VariationalDequantization(
                *(Coupling(mask, net, c) for mask, net in zip(masks, nets, strict=True))
            )

    def default_optimizers(self) -> list[Optimizer]:
        scales = {name for name, _ in self.named_parameters() if name.endswith("parametrizations.weight.original0")}
        groups = [
            {"params": [p for name, p in self.named_parameters() if (name in scales) is scale], "weight_decay": decay}
            for scale, decay in ((False, 0.0), (True, self.weight_decay))
        ]
        return [torch.optim.Adam([g for g in groups if g["params"]], self.lr, fused=self.fused)]
