"""Charts as SVG, whose lines and letters take the page's colours."""

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

Points = Mapping[str, tuple[float, float]]
INK = "#010203"  # what becomes the page's colour of text


def svg(draw: Callable[[Any], None], title: str, size: tuple[float, float] = (4.6, 3.2)) -> str:
    """What ``draw`` draws into matplotlib's axes, as an ``<svg>`` element with a title for screen readers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9, **colours}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.titlesize": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)  # the page decides
    # names of parts must differ from those of other charts on the page
    mark = hashlib.sha256((title + text).encode()).hexdigest()[:8]
    text = re.sub(r'(id="|href="#|url\(#)', rf"\1c{mark}-", text)
    end = text.index(">") + 1
    return f"{text[:end]}<title>{escape(title)}</title>{text[end:]}"


def plain(text: str) -> str:
    """Text in which no dollar begins a formula."""
    return text.replace("$", r"\$")


def lines(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, marked: float | None = None) -> str:
    """Curves over the steps of a training; ``marked``: the step of the checkpoint that was chosen."""

    def draw(axes: Any) -> None:
        for name, points in curves.items():
            x, y = np.array(points).T
            axes.plot(x, y, label=plain(name), linewidth=1.2, marker="." if len(x) < 40 else "")
        if marked is not None:
            axes.axvline(marked, color=INK, linewidth=0.8, linestyle=":")
            axes.annotate("chosen", (marked, 1), xycoords=("data", "axes fraction"), fontsize=7, ha="right")
        axes.set(xlabel="step", title=plain(title))
        axes.legend(fontsize=7)

    return svg(draw, title)


def scatter(points: Points, x: str, y: str, log: Sequence[str] = ()) -> str:
    """Models by name in a plane of two numbers, of which those in ``log`` have a logarithmic axis."""

    def draw(axes: Any) -> None:
        for name, (a, b) in points.items():
            axes.plot(a, b, "o", markersize=5)
            axes.annotate(plain(name), (a, b), textcoords="offset points", xytext=(4, 4), fontsize=7)
        axes.set(xlabel=x, ylabel=y, title=f"{y} against {x}")
        axes.margins(0.18)
        for label, scale in ((x, axes.set_xscale), (y, axes.set_yscale)):
            if label in log:
                scale("log")

    return svg(draw, f"{y} against {x}")


def histograms(values: Mapping[str, Sequence[float]], title: str) -> str:
    """Densities of a score for several sets of images, the model's own filled; outermost bins hold all beyond."""
    arrays = {name: np.array(v)[np.isfinite(v)] for name, v in values.items()}

    def draw(axes: Any) -> None:
        low, high = np.quantile(np.concatenate(list(arrays.values())), [0.005, 0.995])
        bins = np.linspace(low, max(high, low + 1e-9), 60).tolist()
        for name, v in arrays.items():
            own: dict[str, Any] = {"histtype": "stepfilled", "alpha": 0.35} if name == "test" else {"histtype": "step"}
            axes.hist(np.clip(v, bins[0], bins[-1]), bins, density=True, label=plain(name), **own)
        axes.set(title=plain(title), yticks=[], xlabel="higher: further out of distribution")
        axes.legend(fontsize=7)

    return svg(draw, title)


def roc(inside: Sequence[float], others: Mapping[str, Sequence[float]], title: str) -> str:
    """Receiver operating characteristics of a score: images found of other sets against one's own that are rejected."""

    def draw(axes: Any) -> None:
        own = np.sort(np.nan_to_num(inside, nan=np.inf))
        for name, values in others.items():
            theirs = np.sort(np.nan_to_num(values, nan=-np.inf))
            at = np.concatenate([[np.inf], np.unique(np.concatenate([own, theirs]))[::-1], [-np.inf]])
            false, true = (1 - np.searchsorted(v, at, side="left") / len(v) for v in (own, theirs))
            axes.plot(false, true, label=f"{plain(name)} {np.trapezoid(true, false):.3f}", linewidth=1.2)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.5, linestyle=":")
        axes.set(title=plain(title), xlabel="own images rejected", ylabel="others found", aspect="equal")
        axes.legend(fontsize=7, loc="lower right", title="AUROC", title_fontsize=7)

    return svg(draw, title)
