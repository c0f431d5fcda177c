"""The page: which numbers stand beside one another, and which of them may be compared."""

import base64
import math
import platform
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lit_generative.report import charts
from lit_generative.report.runs import Run

# columns of which less is better, by their beginnings; of others more is, but for those of `NEITHER`
LESS = ("fid", "kid", "NLL", "bits/dim", "l1", "lpips", "training, min", "bayes_cross_entropy")
FACTS = ("model", "data", "parameters", "likelihood")
NEITHER = (*FACTS, "data_copying", "train_test_gap")
SAMPLES, RECONSTRUCTIONS = "samples", "reconstructions"
SHOWN = 2  # times the size of their pixels that pictures of samples are shown at


def write_report(runs: Sequence[Run], output: Path) -> None:
    """Write the page of these runs."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("lit_generative.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} models",
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        environment=f"lit-generative {version('lit-generative')}, torch {version('torch')}, "
        f"Lightning {version('lightning')}, Python {platform.python_version()}, {platform.machine()}",
        table=table(runs),
        comparisons=comparisons(runs),
        runs=[described(run) for run in runs],
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")


# -- the table -------------------------------------------------------------------------------------


def number(cell: str) -> float:
    """The number that a cell begins with; NaN if there is none."""
    found = re.match(r"[≤≥ ]*([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)", cell)
    return float(found[1].replace(",", "")) if found else math.nan


def table(runs: Sequence[Run]) -> dict[str, Any]:
    """Columns, and for every run its cells: text, number, whether it is the best, and why it cannot be compared."""
    columns = list(dict.fromkeys(column for run in runs for column in run.results["row"]))
    cells = {run.name: [{"text": run.results["row"].get(column, "")} for column in columns] for run in runs}
    notes: list[str] = []
    for i, column in enumerate(columns):
        stated = {run.name: basis(run, column) for run in runs if run.results["row"].get(column)}
        usual = Counter(stated.values()).most_common(1)[0][0] if stated else ""
        values = {name: number(cells[name][i]["text"]) for name in stated}
        comparable = {name: v for name, v in values.items() if stated[name] == usual and not math.isnan(v)}
        ranked = not column.startswith(NEITHER) and len(set(comparable.values())) > 1
        best = (min if column.startswith(LESS) else max)(comparable.values()) if ranked else None
        for run in runs:
            cell: dict[str, Any] = cells[run.name][i]
            value = values.get(run.name, math.nan)
            cell |= {"number": "" if math.isnan(value) else value, "best": value == best, "note": ""}
            if run.name in stated and stated[run.name] != usual:
                note = f"{column} of {run.name} is of another protocol: {differing(stated[run.name], usual)}"
                notes += [note] * (note not in notes)
                cell["note"] = notes.index(note) + 1
    return {"columns": columns, "rows": [{"name": name, "cells": own} for name, own in cells.items()], "notes": notes}


def basis(run: Run, column: str) -> str:
    """What of a run's protocol its number in a column depends on; numbers of equal ones can be compared."""
    protocol: dict[str, str] = run.results["protocol"]
    data = run.results["row"].get("data", "")
    if column in (*FACTS, "training, min", "samples/s"):
        return ""
    if column.startswith("OOD"):
        return protocol.get("OODScores", "")
    if column.startswith("bayes"):
        return protocol.get("BayesClassifier", "")
    if column.startswith(("authentic", "data_copying", "train_test_gap")):
        return protocol.get("Memorization", "")
    if column.startswith(("fid_", "kid_")):  # there may be several, each of its own features and images
        own = f"fid_{column[4:]}:"
        return next((text for text in protocol.values() if text.startswith(own)), "")
    if column in ("precision", "recall", "density", "coverage"):
        return protocol.get("FID", "")
    return protocol.get(data, data)  # the images


def differing(text: str, usual: str) -> str:
    """The parts of a protocol that another has not."""
    other = usual.split("; ")
    return "; ".join(part for part in text.split("; ") if part not in other) or "parts of the usual one are missing"


# -- charts ----------------------------------------------------------------------------------------


def comparisons(runs: Sequence[Run]) -> list[str]:
    """Quality against diversity, speed and likelihood, rate against distortion, of what two runs have or more."""
    values = {run.name: {column: number(text) for column, text in run.results["row"].items()} for run in runs}
    for run in runs:
        if {"kl", "reconstruction"} <= run.results["metrics"].keys():
            metrics = run.results["metrics"]
            values[run.name] |= {"rate (KL), nats": metrics["kl"], "distortion, nats": metrics["reconstruction"]}
    columns = dict.fromkeys(column for own in values.values() for column in own)
    quality = [column for column in columns if column.startswith("fid_")]
    pairs = [(fid, other) for fid in quality for other in ("recall", "coverage", "samples/s", "bits/dim")]
    pairs += [("rate (KL), nats", "distortion, nats")]
    drawn = []
    for x, y in pairs:
        points = {name: (own.get(x, math.nan), own.get(y, math.nan)) for name, own in values.items()}
        points = {name: pair for name, pair in points.items() if all(map(math.isfinite, pair))}
        if all(len(set(coordinates)) > 1 for coordinates in zip(*points.values(), strict=True)) and len(points) > 1:
            drawn.append(charts.scatter(points, x, y, log=["samples/s"]))
    return drawn


def described(run: Run) -> dict[str, Any]:
    """What the page shows of one run."""
    chosen = run.checkpoints.get("best.ckpt", {}).get("step")
    curves = run.curves
    groups = {"validation": {k: v for k, v in curves.items() if k.startswith("val/")}}
    training = {name: points for name, points in curves.items() if name.startswith("train/")}
    counted = ("images_per_second", "images_seen", "generator_steps")
    groups["training"] = {name: v for name, v in training.items() if not name.endswith(counted)}
    plots = []
    for what, own in groups.items():
        for names in alike(own):
            title = f"{run.name}: {what}, {', '.join(name.split('/')[-1] for name in names)}"
            plots.append(charts.lines({name.split("/")[-1]: own[name] for name in names}, title, chosen))
    for score, sets in run.scores.items():
        others = {name: values for name, values in sets.items() if name not in ("train", "test", "held_out")}
        shown = {name: values for name, values in sets.items() if name == "test" or name in others}
        if "test" in sets and others:
            plots.append(charts.histograms(shown, f"{run.name}: {score}"))
            plots.append(charts.roc(sets["test"], others, f"{run.name}: {score}"))
    pictures = {name: embedded(path) for name, path in run.pictures.items()}
    main = {name: pictures.pop(name) for name in (SAMPLES, RECONSTRUCTIONS, "translations") if name in pictures}
    settings = {key: run.config.get(key) for key in ("seed_everything", "model", "data") if key in run.config}
    return {
        "name": run.name,
        "model": run.model,
        "main": main,
        "others": {name: picture for name, picture in pictures.items() if not name.startswith("ood-")},
        "plots": plots,
        "protocol": run.results["protocol"],
        "metrics": {name: "-" if value is None else f"{value:.6g}" for name, value in run.results["metrics"].items()},
        "checkpoints": run.checkpoints,
        "commands": commands(run),
        "settings": settings,
    }


def alike(curves: dict[str, Any]) -> list[list[str]]:
    """Names of curves whose last values are of one order of magnitude, to be drawn into one chart."""
    groups: dict[int, list[str]] = {}
    for name, points in curves.items():
        size = abs(points[-1][1])
        groups.setdefault(round(math.log10(size) / 2) if size > 0 else 0, []).append(name)
    return list(groups.values())


def commands(run: Run) -> list[str]:
    """How to train and to test the same again."""
    found = []
    if (config := run.folder / "config.yaml").is_file() and run.curves:
        found.append(f"python train.py fit --config {shlex.quote(str(config))}")
    if run.test is not None and run.checkpoints:
        checkpoint = run.folder / "checkpoints" / next(iter(run.checkpoints))
        found.append(f"python train.py test --ckpt_path {shlex.quote(str(checkpoint))}")
    return found


def embedded(path: Path) -> dict[str, Any]:
    """A picture as a data URL, with its size in pixels."""
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
    times = SHOWN if width < 400 else 1
    data = base64.b64encode(path.read_bytes()).decode()
    return {"url": f"data:image/png;base64,{data}", "width": times * width, "height": times * height}
