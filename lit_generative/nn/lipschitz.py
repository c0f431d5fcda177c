"""Layers whose Lipschitz constant is bounded, and the networks of residual flows made of them.

Each layer can be linearised: with its output comes the product of its transposed Jacobian with any w. A residual flow
takes many such products at one x, and autograd would compute the slopes of the activations anew for each.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_generative.nn.layout import arranged

Product = Callable[[Tensor], Tensor]
"""w to J' w, of the shape of the input."""


class LipSwish(nn.Module):
    """x sigmoid(beta x) / 1.1, of slope at most 1, beta > 0 learned (Chen et al., 2019, Section 3.3)."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * ((F.softplus(self.raw) * x).sigmoid() / 1.1)

    def linearize(self, x: Tensor) -> tuple[Tensor, Product]:
        """The output, and w to J' w."""
        bx = F.softplus(self.raw) * x
        gate = bx.sigmoid() / 1.1
        slope = torch.addcmul(gate, bx, gate * (1 - 1.1 * gate))
        return x * gate, slope.mul


class SpectralLayer(nn.Module):
    """A linear map, plus a bias, whose largest singular value is at most ``coefficient``.

    The weight is divided by max(1, sigma / coefficient), sigma from power iteration on the map itself: that of a
    convolution with its padding, not that of its reshaped kernel (Gouk et al., 2021). Its singular vectors are found
    anew for a weight that has changed; in evaluation (of averaged weights) without a trace in those of training.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    u: Tensor
    v: Tensor
    known: Tensor

    def __init__(self, layer: Any, input_shape: tuple[int, ...], coefficient: float) -> None:
        super().__init__()
        self.weight, self.bias, self.coefficient = layer.weight, layer.bias, coefficient
        v = torch.randn(1, *input_shape)
        self.register_buffer("v", v / v.norm())
        self.register_buffer("u", torch.zeros_like(layer(self.v)))
        self.register_buffer("known", torch.zeros_like(layer.weight), persistent=False)  # the weight that they are of
        self.register_load_state_dict_post_hook(_look_at_loaded)
        self.renew()

    def map(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The linear map of ``weight``."""
        raise NotImplementedError

    def adjoint(self, y: Tensor, weight: Tensor) -> Tensor:
        """Its transpose."""
        raise NotImplementedError

    def iterate(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One power iteration: u, the next v, and sigma before it."""
        y = self.map(v, self.weight)
        u = y / y.norm().clamp(min=1e-12)
        x = self.adjoint(u, self.weight)
        return u, x / x.norm().clamp(min=1e-12), y.norm()

    def singular_vectors(self, tolerance: float = 1e-3, at_most: int = 500) -> tuple[Tensor, Tensor]:
        """u and v of the largest singular value, found when it grows by less than ``tolerance`` in five iterations."""
        v, before = self.v, -math.inf
        for i in range(at_most):
            u, v, sigma = self.iterate(v)
            if i % 5 == 0:
                if float(sigma) - before <= tolerance * float(sigma):
                    break
                before = float(sigma)
        return u, v

    def vectors_now(self) -> tuple[Tensor, Tensor]:
        """u and v, or the singular vectors of the weight if it is another by now."""
        ahead = self.map(self.iterate(self.v)[1], self.weight).norm()
        fitting = ahead - (self.u * self.map(self.v, self.weight)).sum() <= 1e-3 * ahead
        return (self.u, self.v) if fitting else self.singular_vectors()

    @torch.no_grad()
    def renew(self) -> None:
        """Find the singular vectors of the weight as it is now."""
        u, v = self.singular_vectors()
        self.u.copy_(u), self.v.copy_(v), self.known.copy_(self.weight)

    def bounded_weight(self) -> Tensor:
        u, v = self.u, self.v
        if not torch.compiler.is_compiling() and not torch.equal(self.weight, self.known):
            if self.training:
                self.renew()
            else:
                with torch.no_grad():
                    u, v = self.vectors_now()
        with torch.autocast(v.device.type, enabled=False):
            sigma = (u * self.map(v, self.weight)).sum()
            return self.weight / (sigma / self.coefficient).clamp(min=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x, self.bounded_weight(), self.bias)

    def linearize(self, x: Tensor) -> tuple[Tensor, Product]:
        """The output, and w to J' w."""
        weight = self.bounded_weight()
        return self.map(x, weight, self.bias), lambda w: self.adjoint(w, weight)


def _look_at_loaded(layer: SpectralLayer, _: Any) -> None:
    """Leave vectors as they were saved, so that a training goes on exactly, unless they are of another weight."""
    with torch.no_grad():
        for kept, now in zip((layer.u, layer.v), layer.vectors_now(), strict=True):
            kept.copy_(now)
        layer.known.copy_(layer.weight)


def renew_norms(network: nn.Module) -> None:
    """Renew all layers of a network: to be called after a step, so that checkpoints are up to date."""
    for layer in network.modules():
        if isinstance(layer, SpectralLayer):
            layer.renew()


class SpectralLinear(SpectralLayer):
    """``(..., inputs)`` to ``(..., outputs)``."""

    def __init__(self, inputs: int, outputs: int, coefficient: float) -> None:
        super().__init__(nn.Linear(inputs, outputs), (inputs,), coefficient)

    def map(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def adjoint(self, y: Tensor, weight: Tensor) -> Tensor:
        return F.linear(y, weight.T)


class SpectralConv(SpectralLayer):
    """Images ``(B, *input_shape)`` to ``(B, outputs, H, W)`` by an odd ``kernel`` with zero padding."""

    def __init__(self, input_shape: tuple[int, int, int], outputs: int, kernel: int, coefficient: float) -> None:
        self.padding = kernel // 2
        super().__init__(
            nn.Conv2d(input_shape[0], outputs, kernel, padding=kernel // 2), tuple(input_shape), coefficient
        )

    def map(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=self.padding)

    def adjoint(self, y: Tensor, weight: Tensor) -> Tensor:
        # the transpose by a convolution, which is faster than torch's for one image
        return F.conv2d(y, weight.transpose(0, 1).flip(2, 3), padding=self.padding)


class LipschitzNetwork(nn.Sequential):
    """Layers of slopes at most 1 in a row."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(arranged(x) if x.dim() == 4 else x)

    def linearize(self, x: Tensor) -> tuple[Tensor, Product]:
        """The output, and w to J' w."""
        products: list[Product] = []
        x = arranged(x) if x.dim() == 4 else x
        layer: Any
        for layer in self:
            x, product = layer.linearize(x)
            products.append(product)

        def transposed(w: Tensor) -> Tensor:
            w = arranged(w) if w.dim() == 4 else w
            for product in reversed(products):
                w = product(w)
            return w

        return x, transposed


def lipschitz_mlp(dims: int, width: int, depth: int, coefficient: float, first: bool = False) -> LipschitzNetwork:
    """``(B, dims)`` to ``(B, dims)`` by ``depth`` hidden layers, an activation before each layer but the ``first``."""
    sizes = [dims, *[width] * depth, dims]
    layers: list[nn.Module] = [] if first else [LipSwish()]
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [LipSwish()] * (i > 0) + [SpectralLinear(a, b, coefficient)]
    return LipschitzNetwork(*layers)


def lipschitz_convs(
    shape: tuple[int, int, int], width: int, coefficient: float, first: bool = False
) -> LipschitzNetwork:
    """Images to images of the same shape by convolutions 3x3, 1x1 and 3x3 (Chen et al., 2019, App. E)."""
    c, h, w = shape
    inner = (width, h, w)
    layers: list[nn.Module] = [] if first else [LipSwish()]
    layers += [SpectralConv(shape, width, 3, coefficient), LipSwish(), SpectralConv(inner, width, 1, coefficient)]
    return LipschitzNetwork(*layers, LipSwish(), SpectralConv(inner, c, 3, coefficient))
