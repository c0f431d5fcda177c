"""Statistics over images that hold on any number of processes."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Moments(Metric):
    """Mean, variance and standard error over images of ``features`` numbers per image, float64, summed over ranks.

    ``update`` takes ``(B, features)``; its accumulation is exact however the images are split into batches or ranks.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    total_of_squares: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total_of_squares", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        values = values.to(torch.float64)
        self.count += len(values)
        self.total += values.sum(0)
        self.total_of_squares += values.square().sum(0)

    def compute(self) -> Tensor:
        """Mean, unbiased variance, standard error of the mean and number of images, ``(4, features)``."""
        mean = self.total / self.count
        variance = (self.total_of_squares - self.count * mean.square()).clamp(min=0) / (self.count - 1).clamp(min=1)
        return torch.stack([mean, variance, (variance / self.count).sqrt(), self.count.expand_as(mean)])
