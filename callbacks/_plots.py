"""Plots as images for `log_image`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render(figure: "Figure") -> Tensor:
    """A figure as an image ``(3, H, W)`` in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3]).permute(2, 0, 1) / 255


def histograms(values: Mapping[str, Tensor], label: str) -> Tensor:
    """Histograms of several sets of numbers over one another; image ``(3, H, W)``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    finite = {name: v[v.isfinite()].numpy() for name, v in values.items() if v.isfinite().any()}
    pooled = np.concatenate([*finite.values(), [0.0] if not finite else []])
    low, high = np.quantile(pooled, [0.005, 0.995])
    bins = np.linspace(low, max(high, low + 1e-9), 80).tolist()
    for name, v in finite.items():
        own = name in ("train", "test")
        clipped = np.clip(v, bins[0], bins[-1])
        style: Any = {"histtype": "stepfilled", "alpha": 0.4} if own else {"histtype": "step"}
        axes.hist(clipped, bins, density=True, label=name, **style)
    axes.set(xlabel=f"{label}; the outermost bins hold everything beyond", ylabel="density")
    axes.legend(frameon=False)
    return render(figure)


def bars(values: Mapping[str, Tensor], names: Sequence[str], label: str) -> Tensor:
    """Bar charts of several quantities, one above the other; image ``(3, H, W)``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 0.25 * len(names)), 2.5 * len(values)), dpi=100, layout="constrained")
    charts = figure.subplots(len(values), sharex=True, squeeze=False)[:, 0]
    for axes, (name, heights) in zip(charts, values.items(), strict=True):
        axes.bar(range(len(names)), heights.numpy())
        axes.set(ylabel=name)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel=label)
    return render(figure)


def scatter(points: Tensor, labels: Tensor, names: Sequence[str]) -> Tensor:
    """Points ``(N, 2)`` coloured by label, with the names of the axes; image ``(3, H, W)``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for label in labels.unique().tolist():
        x, y = points[labels == label].T.numpy()
        axes.scatter(x, y, s=4, alpha=0.6, label=str(label))
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.legend(frameon=False, markerscale=4)
    return render(figure)


def curves(lines: Mapping[str, Tensor], x_name: str, y_name: str) -> Tensor:
    """Lines of (x, y), each ``(2, N)``, y on a logarithmic scale; image ``(3, H, W)``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for name, (x, y) in lines.items():
        axes.plot(x.numpy(), y.numpy(), marker=".", label=name)
    axes.set(xlabel=x_name, ylabel=y_name, yscale="log")
    if len(lines) > 1:
        axes.legend(frameon=False)
    return render(figure)
