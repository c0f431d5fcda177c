"""What a run has left on disk: settings, curves, results of its newest test, pictures, scores, checkpoints."""

import csv
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lit_generative.checkpoints.load import read_safely
from lit_generative.errors import UserError

Curve = list[tuple[float, float]]  # (step, value)


@dataclass
class Run:
    """A run's folder, or one with the results of a test only.

    Args:
        folder: Holds ``metrics.csv``, ``checkpoints`` and ``images``, and under ``test`` results of tests.
        name: Unique among the runs of a report.
    """

    folder: Path
    name: str = ""
    test: Path | None = field(init=False)

    def __post_init__(self) -> None:
        tests = [self.folder / "results.json", *self.folder.glob("test/*/results.json")]
        found = [path for path in tests if path.is_file()]
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        self.test = None if newest is None else newest.parent

    @cached_property
    def results(self) -> dict[str, Any]:
        """``row``, ``protocol`` and ``metrics`` of the newest test; each empty if there is none."""
        empty: dict[str, Any] = {"row": {}, "protocol": {}, "metrics": {}}
        return empty if self.test is None else empty | json.loads((self.test / "results.json").read_text())

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.yaml`` of the training, or of the test."""
        for folder in filter(None, (self.folder, self.test)):
            if (path := folder / "config.yaml").is_file():
                return yaml.safe_load(path.read_text()) or {}
        return {}

    @cached_property
    def model(self) -> str:
        """The class of the model."""
        named = str((self.config.get("model") or {}).get("class_path", "")).rpartition(".")[2]
        return self.results["row"].get("model", named or "?")

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """What the training logged by name, by step."""
        path, curves = self.folder / "metrics.csv", dict[str, Curve]()
        if path.is_file() and (self.test is None or path.parent != self.test):
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    for name, value in row.items():
                        if name not in ("epoch", "step") and value and math.isfinite(float(value)):
                            curves.setdefault(name, Curve()).append((float(row["step"]), float(value)))
        return curves

    @cached_property
    def pictures(self) -> dict[str, Path]:
        """The newest picture of every name, those of a test first."""
        ending, found = re.compile(r"_(epoch\d+_step\d+|[a-z]+)$"), dict[str, Path]()
        for folder in (self.folder, self.test):
            if folder is not None:
                paths = sorted((folder / "images").glob("*.png"), key=lambda path: path.stat().st_mtime)
                found |= {ending.sub("", path.stem): path for path in paths}
        return found

    @cached_property
    def scores(self) -> dict[str, dict[str, list[float]]]:
        """Out-of-distribution scores of the test's images, by score and set."""
        found: dict[str, dict[str, list[float]]] = {}
        path = None if self.test is None else self.test / "ood" / "scores.csv"
        if path is not None and path.is_file():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    for score in row.keys() - {"images", "number"}:
                        found.setdefault(score, {}).setdefault(row["images"], []).append(float(row[score]))
        return found

    @cached_property
    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """``step``, ``epoch`` and the first digits of the SHA-256 of ``best.ckpt`` and ``last.ckpt``."""
        found = {}
        for name in ("best.ckpt", "last.ckpt"):
            if (path := self.folder / "checkpoints" / name).is_file():
                saved = read_safely(path)
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
                found[name] = {"step": saved.get("global_step"), "epoch": saved.get("epoch"), "sha256": digest}
        return found


def run_of(source: str | Path) -> Run:
    """The run of a folder, of the newest version in it, of a checkpoint or of a ``results.json``.

    Raises:
        UserError: There is nothing like that.
    """
    path = Path(source).expanduser()
    if path.suffix == ".ckpt" and path.is_file():
        path = path.absolute().parents[1]
    elif path.name == "results.json" and path.is_file():
        path = path.absolute().parent
    versions = [p for p in path.glob("version_*") if p.name.removeprefix("version_").isdigit()]
    if versions:
        path = max(versions, key=lambda p: int(p.name.removeprefix("version_")))
    run = Run(path.absolute())
    if not path.is_dir() or (run.test is None and not run.curves):
        raise UserError(f"{source} is no run: give a run's folder, a checkpoint in one, or a results.json")
    return run


def runs_of(sources: list[str]) -> list[Run]:
    """The runs, each once, with names that tell them apart."""
    runs = list({run.folder: run for run in map(run_of, sources)}.values())
    for depth in (1, 2, 3):
        for run in runs:
            parts = [part for part in run.folder.parts if part != "test" and not re.fullmatch(r"version_\d+", part)]
            run.name = "/".join(parts[-depth:])
        if len({run.name for run in runs}) == len(runs):
            return runs
    for run in runs:
        run.name = str(run.folder)
    return runs
