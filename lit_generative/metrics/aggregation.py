"""Statistics over images that do not depend on the number of processes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_generative.errors import UserError
from lit_generative.utils.precision import Move, device_only, exact


class Accumulator(Metric):
    """A metric whose state is usable in training after a test, which runs in inference mode, has reset it.

    The state keeps its dtype when that of the model changes; float64 is kept on the CPU for devices without it.
    """

    full_state_update = False

    def _apply(self, fn: Move, exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(device_only(fn, self.device), exclude_state)

    def reset(self) -> None:
        with torch.inference_mode(False):
            super().reset()


class Moments(Accumulator):
    """Mean, variance and standard error over images of ``features`` numbers per image, in float64, over all ranks.

    ``update`` takes ``(B, features)``. Sums do not depend on the split into batches and ranks, up to rounding.
    """

    count: Tensor
    total: Tensor
    total_of_squares: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total_of_squares", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        values = exact(values)
        self.count += len(values)
        self.total += values.sum(0)
        self.total_of_squares += values.square().sum(0)

    def compute(self) -> Tensor:
        """Mean, unbiased variance, standard error of the mean and number of images, ``(4, features)``."""
        mean = self.total / self.count
        variance = (self.total_of_squares - self.count * mean.square()).clamp(min=0) / (self.count - 1).clamp(min=1)
        variance = variance.nan_to_num(nan=torch.inf)  # a value was infinite
        return torch.stack([mean, variance, (variance / self.count).sqrt(), self.count.expand_as(mean)])


class Contingency(Accumulator):
    """How often clusters meet labels of 0 to 255, over all ranks, and the accuracy of the best one-to-one matching."""

    counts: Tensor

    def __init__(self, clusters: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(clusters, 256, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, cluster: Tensor, label: Tensor) -> None:
        """Count images, by cluster and label, each int64 ``(B,)``."""
        found = torch.bincount((cluster * 256 + label).to(self.counts.device), minlength=self.counts.numel())
        self.counts += found.view_as(self.counts)

    def compute(self) -> Tensor:
        """The share of images in matched pairs (Yang et al., 2010)."""
        from scipy.optimize import linear_sum_assignment

        counts = self.counts.cpu()
        pairs = linear_sum_assignment(counts.numpy(), maximize=True)
        return counts[pairs].sum() / counts.sum()


class Stats(NamedTuple):
    """Mean, unbiased variance and standard error of one number per image, and how many images there were."""

    mean: Tensor
    variance: Tensor
    stderr: Tensor
    images: Tensor


class MomentsByName:
    """`Moments` of named numbers ``(B,)`` of images; the names are those of the first batch."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._moments: Moments | None = None

    def update(self, values: dict[str, Tensor]) -> None:
        rows = torch.stack(list(values.values()), -1)
        if self._moments is None:
            self.names, self._moments = tuple(values), Moments(len(values)).to(rows.device)
        if self.names != tuple(values):
            raise UserError(f"every batch must give the same numbers: {self.names}, then {tuple(values)}")
        self._moments.update(rows)

    def compute(self, device: torch.device) -> dict[str, Stats]:
        """Statistics by name over all processes, float64, on every one of them; and start again."""
        if torch.distributed.is_initialized():  # a process without images has no names
            known: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(known, self.names)
            self.names = max(known, key=len)
        moments, names = self._moments or Moments(len(self.names)).to(device), self.names
        self.names, self._moments = (), None
        if not names:
            return {}
        return {name: Stats(*column) for name, column in zip(names, moments.compute().T, strict=True)}


class PerImage(Accumulator):
    """Rows of numbers, one for each image, in the images' order, whatever the batches and ranks.

    ``update`` takes rows ``(B, d)`` and the indices of their images ``(B,)``; each index occurs once over all ranks.
    """

    rows: list[Tensor]
    index: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("index", [], dist_reduce_fx="cat")

    def update(self, rows: Tensor, index: Tensor) -> None:
        self.rows.append(rows)
        self.index.append(index.to(rows.device))

    def compute(self) -> Any:
        """All rows, ``(N, d)``, on the CPU."""
        return dim_zero_cat(self.rows)[dim_zero_cat(self.index).argsort()].cpu()
