"""The first and last lines of a run, its numbers, and where its files are."""

import json
import math
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks._logging import run_folder
from callbacks.base import datamodule_of
from callbacks.reporting._heading import heading
from callbacks.reporting._lines import INDENT, duration, fact, number, numbers, position, wrapped
from lit_generative.checkpoints.best import last_checkpoint, run_checkpoint
from lit_generative.report.page import write_report
from lit_generative.report.runs import runs_of
from lit_generative.utils.files import set_aside

TITLES = {"samples_per_second": "samples/s", "nll": "NLL, nats", "bpd": "bits/dim"}


class Report(Callback):
    """Print model, data and device, a line for every validation, and at the end checkpoints, images and results.

    The numbers of a test and one row for tables of models are also written to ``results.json`` and ``results.md``, and
    with pictures and curves to ``report.html``.

    Args:
        networks: Print how many parameters each network has.
    """

    def __init__(self, networks: bool = True) -> None:
        self.networks = networks
        self._seen: dict[str, Tensor] = {}

    def _print_heading(self, trainer: Trainer, model: LightningModule) -> None:
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            where = "none: nothing is written" if folder is None else str(folder)
            print("\n".join([*heading(trainer, model, self.networks), fact("run folder", where)]), end="\n\n")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_heading(trainer, pl_module)

    on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._print_heading(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        # the same tensor object: it was not logged again
        new = {name: float(value) for name, value in logged.items() if value is not self._seen.get(name)}
        self._seen = logged
        if trainer.state.fn == TrainerFn.VALIDATING:
            values = {name.removeprefix("val/"): value for name, value in new.items()}
            _print_numbers(f"validation of {type(pl_module).__name__}", values)
        elif new:
            monitor = getattr(run_checkpoint(trainer), "monitor", None) or "val/loss"
            names = sorted(new, key=lambda name: name != monitor)  # that of the best checkpoint first
            # without what only repeats it, as an ELBO is the negative of a loss
            names = [name for name in names if name == names[0] or abs(new[name]) != abs(new[names[0]])]
            when, within = position(trainer), not trainer.is_last_batch
            when += f", step {trainer.global_step:,}   val  " if within and "epoch" in when else "   val  "
            print(wrapped(when, numbers({name.removeprefix("val/"): new[name] for name in names}), "  "))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        checkpoint: Any = run_checkpoint(trainer)
        spent, best = getattr(pl_module, "training_seconds", 0.0), getattr(checkpoint, "best_model_score", None)
        score = "" if best is None else f", best {checkpoint.monitor} {number(float(best))}"
        print("\n" + fact("trained", f"{trainer.global_step:,} steps in {duration(spent)}{score}"))
        if folder is None:
            return
        kept = Path(getattr(checkpoint, "best_model_path", ""))
        if best is not None and kept.is_file():  # not on a full disk
            older = str(kept) in getattr(trainer.strategy.checkpoint_io, "lost", ())
            note = "  (an older one: the best could not be written)" * older
            print(f"{'best checkpoint':<{INDENT}}{_relative(kept)}{note}")
        if (last := last_checkpoint(trainer)) is not None and last.is_file():
            print(f"{'last checkpoint':<{INDENT}}{_relative(last)}")
        _print_images(folder)
        print(f"{'run folder':<{INDENT}}{folder}")
        if any(getattr(logger, "curves", True) for logger in trainer.loggers):
            print(f"{'report':<{INDENT}}python train.py report {shlex.quote(str(folder))}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
        metrics = {name.removeprefix("test/"): v for name, v in logged.items() if name.startswith(("test/", "ood/"))}
        data = datamodule_of(trainer)
        sources = (data, pl_module, *trainer.callbacks)  # type: ignore[attr-defined]
        protocol: dict[str, str] = {}
        for source in sources:
            if text := getattr(source, "describe_test", str)():
                name = type(source).__name__
                protocol[f"{name} {len(protocol)}" if name in protocol else name] = text
        row = _row(pl_module, data, sources, metrics)
        table = [" | ".join(cells) for cells in (row, ["---"] * len(row), row.values())]
        text = "".join(f"| {line} |\n" for line in table)
        text += "".join(f"\n* {name}: {description}" for name, description in protocol.items()) + "\n"
        # OODScores prints its own table
        named = {name: value for name, value in metrics.items() if not name.startswith("ood/")}
        _print_numbers(f"test of {type(pl_module).__name__}", named)
        print(f"\n{text}")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # for JSON
            results = {"row": row, "protocol": protocol, "metrics": finite}
            set_aside(folder / "results.json", folder / "results.md", folder / "report.html")
            (folder / "results.json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
            (folder / "results.md").write_text(text)
            run = folder.parents[1] if folder.parent.name == "test" else folder
            write_report(runs_of([str(run)]), folder / "report.html")
            _print_images(folder)
            print(f"{'run folder':<{INDENT}}{folder}\n{'report':<{INDENT}}{folder / 'report.html'}")


def _row(model: LightningModule, data: Any, sources: Iterable[Any], metrics: dict[str, float]) -> dict[str, str]:
    """One row for a table of models: the numbers that each source lists in ``reported``, if they were measured."""
    seconds = getattr(model, "training_seconds", 0.0)
    row = {
        "model": type(model).__name__,
        "data": type(data).__name__,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "training, min": f"{seconds / 60:.2f}" if seconds else "-",
    }
    forms = [getattr(source, "reported", {}) for source in sources]
    for name, form in [*(entry for found in forms for entry in found.items()), ("nll", ".1f"), ("bpd", ".3f")]:
        if name in metrics:
            error = metrics.get(f"{name}_stderr")
            title = re.sub("^ood/auroc_(.*)", r"OOD AUROC (\1)", TITLES.get(name, name))
            row[title] = f"{metrics[name]:{form}}" + (f" ± {error:{form}}" if error else "")
    if kind := getattr(model, "likelihood_kind", ""):
        row["likelihood"] = kind + getattr(model, "given", "")
    return row


def _print_numbers(title: str, metrics: dict[str, float]) -> None:
    print(f"\n{title}")
    width = max([24, *(len(name) + 1 for name in metrics)])
    for name, value in metrics.items():
        if not name.endswith("_stderr"):
            error = metrics.get(f"{name}_stderr")
            print(f"  {name:<{width}}{value:>12.4f}" + (f"  ± {error:.4f}" if error is not None else ""))


def _print_images(folder: Path) -> None:
    """Print the newest image of every name."""
    ending = re.compile(r"_(epoch\d+_step\d+|[a-z]+)$")  # what `log_image` appends
    newest = {ending.sub("", path.stem): path for path in sorted((folder / "images").glob("*.png"))}
    for i, path in enumerate(newest.values()):
        if i == 0:
            print(f"{'images':<{INDENT}}{path.parent}")
        print(f"{'':<{INDENT}}{path.name}")


def _relative(path: str | Path) -> Path:
    absolute = Path(path)
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
