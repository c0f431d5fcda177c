"""Tables of out-of-distribution scores, for the terminal and for files."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

WARNING = (
    "likelihood alone is a baseline that can fail badly: a density model may give simpler images of another "
    "kind a higher likelihood than its own (Nalisnick et al., 2019)"
)

OWN = "these scores are the model's own, not likelihoods"
HOW = (
    "typicality against the mean over training images; complexity: shortest of PNG, WebP and JPEG 2000; dose: product "
    "of kernel densities of the other scores, over images of the validation split"
)


def short_table(values: Mapping[tuple[str, str], float]) -> str:
    """One number for every (row, column), aligned."""
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*values, strict=True)) if values else ([], [])
    lines = [f"  {'':<12}" + "".join(f"{column:>16}" for column in columns)]
    lines += [f"  {row:<12}" + "".join(f"{values[row, column]:16.3f}" for column in columns) for row in rows]
    return "\n".join(lines)


def score_table(
    scores: Mapping[str, Mapping[str, Tensor]],
    log_probs: Mapping[str, Tensor],
    kind: str,
    measured: Mapping[tuple[str, str], Mapping[str, tuple[float, ...]]],
) -> str:
    """For every set and score the mean, its standard error, and detection with intervals, as Markdown."""
    lines = ["| images | score | mean ± s.e. | AUROC | AUPR | FPR at 95 % TPR |", "|---|---|---:|---:|---:|---:|"]
    for name, columns in scores.items():
        images = f"{name} ({len(next(iter(columns.values()))):,})"
        if name in log_probs:
            lines.append(f"| {images} | log p(x), nats ({kind}) | {_mean_and_error(log_probs[name])} | | | |")
        for score, values in columns.items():
            measures = measured.get((name, score), {})
            cells = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in measures.values()] or ["", "", ""]
            lines.append(f"| {images} | {score} | {_mean_and_error(values)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_and_error(values: Tensor) -> str:
    return f"{values.mean():.4g} ± {values.std() / math.sqrt(len(values)):.2g}"


def write_scores(path: Path, numbers: Mapping[str, Tensor], scores: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the scores of every image of every set, with its index in its file, as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["images", "number", *next(iter(scores.values()))])
        for name, columns in scores.items():
            rows = zip(numbers[name].tolist(), *(column.tolist() for column in columns.values()), strict=True)
            writer.writerows([name, *row] for row in rows)
