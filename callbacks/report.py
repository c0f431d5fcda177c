"""The last words of a run: where everything is, and the test's numbers with their protocol."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._logging import run_folder


class Report(Callback):
    """Print the run's folder, its best checkpoint, its pictures, and after a test the table of metrics.

    The table is also written as ``results.json``.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        print(f"\nrun folder       {folder}")
        checkpoint: Any = trainer.checkpoint_callback
        if checkpoint is not None and checkpoint.best_model_score is not None:
            score = f"{checkpoint.monitor} = {float(checkpoint.best_model_score):.4f}"
            print(f"best checkpoint  {_relative(checkpoint.best_model_path)}  ({score})")
        _print_pictures(folder)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        metrics = {
            k.removeprefix("test/"): float(v) for k, v in trainer.logged_metrics.items() if k.startswith("test/")
        }
        data: Any = getattr(trainer, "datamodule", None)
        protocol = f"{data.describe_test()}; " if hasattr(data, "describe_test") else ""
        protocol += getattr(pl_module, "describe_test", str)()
        print(f"\ntest of {type(pl_module).__name__}: {protocol}")
        for name, value in metrics.items():
            if not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr")
                print(f"  {name:<16}{value:>12.4f}" + (f"  ± {error:.4f}" if error is not None else ""))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            results = {"protocol": protocol, "metrics": metrics}
            (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
            print(f"run folder       {folder}")
            _print_pictures(folder)


def _print_pictures(folder: Path) -> None:
    """The newest picture of every kind."""
    newest = {path.name.split("_")[0]: path for path in sorted((folder / "images").glob("*.png"))}
    for kind, path in newest.items():
        print(f"{kind:<16} {path}")


def _relative(path: str) -> Path:
    absolute = Path(path)
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
