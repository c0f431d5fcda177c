"""Small sprites with known factors of variation: every combination of five factors, drawn here.

A smaller dSprites (Matthey et al., 2017): 3 shapes, 4 sizes, 10 orientations, 12 x 12 positions.
"""

from functools import cache
from itertools import product

import torch
from torch import Tensor

from datamodules.base import ImageData, Split
from datamodules.loader import fixed_generator

FACTORS = {"shape": 3, "size": 4, "orientation": 10, "x": 12, "y": 12}
SIDE = 28  # pixels
RADIUS = 6.0  # of the largest sprite, in pixels
FIRST = 8  # the smallest coordinate of a centre
FINE = 3  # sample points along the side of a pixel


def factors() -> Tensor:
    """The factors of every image of `draw`, int64 ``(17280, 5)``."""
    return torch.tensor(list(product(*map(range, FACTORS.values()))))


def sprite(shape: int, size: int, orientation: int) -> Tensor:
    """One sprite, centred at pixel (FIRST, FIRST), bool ``(28, 28)``."""
    points = (torch.arange(SIDE * FINE) + 0.5) / FINE - 0.5 - FIRST
    y, x = torch.meshgrid(points, points, indexing="ij")
    angle = torch.tensor(2 * torch.pi * orientation / FACTORS["orientation"])
    radius = RADIUS * (0.5 + 0.5 * size / (FACTORS["size"] - 1))
    u = (angle.cos() * x + angle.sin() * y) / radius
    v = (angle.cos() * y - angle.sin() * x) / radius
    square = torch.maximum(u.abs(), v.abs()) < 0.75
    ellipse = u**2 + (2 * v) ** 2 < 1
    a, b = 1.25 * u, -1.25 * v
    heart = (a**2 + b**2 - 1) ** 3 < a**2 * b**3
    inside = (square, ellipse, heart)[shape].float()
    return inside.unflatten(0, (SIDE, FINE)).unflatten(2, (SIDE, FINE)).mean((1, 3)) >= 0.5


@cache
def draw() -> Tensor:
    """All images, levels 0 and 255, uint8 ``(17280, 1, 28, 28)``."""
    still = torch.stack(
        [sprite(*kind) for kind in product(*(range(FACTORS[f]) for f in ("shape", "size", "orientation")))]
    )
    positions = product(range(FACTORS["x"]), range(FACTORS["y"]))
    images = torch.stack([still.roll((y, x), (1, 2)) for x, y in positions], 1)  # (120, 144, 28, 28)
    return images.flatten(0, 1).unsqueeze(1).to(torch.uint8) * 255


class Sprites(ImageData):
    """Sprites labelled by shape: square, ellipse, heart. The test split is all images, including those trained on.

    ``factors`` are those of each test image, int64 ``(17280, 5)``. The test images are in a fixed random order, so that
    every batch mixes all factors. Binarisation changes nothing but the number of levels.
    """

    shape = (1, SIDE, SIDE)
    num_classes = 3
    val_fraction = 0.1

    @property
    def factors(self) -> Tensor:
        return factors()[self._order("test")]

    def stored(self, split: Split) -> tuple[Tensor, Tensor]:
        order = self._order(split)
        return draw()[order], factors()[order, 0]

    @staticmethod
    def _order(split: Split) -> Tensor:
        count = len(factors())
        return torch.arange(count) if split == "train" else torch.randperm(count, generator=fixed_generator("test"))

    def describe_test(self) -> str:
        return f"{super().describe_test()}: all combinations, those trained on among them"
