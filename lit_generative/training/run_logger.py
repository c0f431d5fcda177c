"""The curves of a run as CSV, continued when the run is resumed."""

import csv
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.utils.files import atomic_write, set_aside


class RunLogger(CSVLogger):
    """Lightning's CSV logger, which continues the rows of a run that is resumed in its folder.

    Args:
        save_dir, name, version: ``<save_dir>/<name>/version_<version>``; None: the next version.
        steps: Steps of the checkpoint that the run is resumed from; later rows are those of steps that are lost.
        curves: Whether to write rows; else it gives the run its folder, and nothing more.

    Raises:
        ValueError: ``name`` leads out of ``save_dir``.
    """

    def __init__(
        self, save_dir: Path, name: str, version: int | None = None, steps: int = 0, curves: bool = True
    ) -> None:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"--name {name} leads out of {save_dir}: use --trainer.default_root_dir for another place")
        super().__init__(save_dir, name)
        self.steps, self.curves = steps, curves
        self._number = version
        self._rows: Rows | None = None

    @property
    def version(self) -> int:
        if self._number is None:
            self._number = next_version(Path(self.root_dir))
        return self._number

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._rows is None:
            self._rows = Rows(Path(self.log_dir) / "metrics.csv", self.steps)
        return self._rows

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self.curves:
            self.experiment.add(metrics, step or 0)

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        if not self.steps:  # else the file has those that the run began with, and a new config.yaml those of now
            folder = Path(self.log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_hparams_to_yaml(folder / "hparams.yaml", params)

    @rank_zero_only
    def save(self) -> None:
        """Nothing: every row is written when it is logged, so that a run that is killed has its rows."""


def next_version(runs: Path) -> int:
    """The number of the next ``version_<n>``; rank 0 makes its folder at once, so that no other run takes it."""
    numbers = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
    version = max((int(number) + 1 for number in numbers if number.isdigit()), default=0)
    while getattr(rank_zero_only, "rank", 0) == 0:
        try:
            (runs / f"version_{version}").mkdir(parents=True)
            break
        except FileExistsError:
            version += 1
    return version


class Rows:
    """Metrics by step in a CSV file, which has whole rows only, whatever happens to the process or the disk.

    Args:
        path: The file.
        steps: Keep the rows of earlier steps; 0: begin a new file.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.path = path
        self._columns: list[str] = []
        self._waiting: list[dict[str, Any]] = []  # rows that could not be written yet
        self._logged: dict[int, set[str]] = {}  # names by step, of the rows that are kept
        if not steps:
            set_aside(path)
        elif path.is_file():
            rows = [row for row in self._read() if (row["step"] or "").isdigit() and int(row["step"]) < steps]
            for row in rows:
                self._logged.setdefault(int(row["step"]), set()).update(name for name, value in row.items() if value)
            self._columns = list(rows[0]) if rows else []
            self._rewrite(self._columns, rows)

    def add(self, metrics: dict[str, Any], step: int) -> None:
        """Write a row, and those before that could not be written."""
        if self._logged.get(step, set()) >= metrics.keys():  # of a step after the last one of the checkpoint
            return
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self._waiting.append(values | {"step": step})
        columns = sorted({*self._columns, *(name for row in self._waiting for name in row)})
        try:
            if columns == self._columns and self.path.is_file():
                self._append()
            else:
                self._rewrite(columns, [*self._read(), *self._waiting])
        except OSError as error:
            rank_zero_warn(f"{self.path} could not be written, the next row tries again: {error}")
        else:
            self._columns, self._waiting = columns, []

    def _read(self) -> list[dict[str, str]]:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))  # a kill may tear the last line

    def _rewrite(self, columns: list[str], rows: list[Any]) -> None:
        with atomic_write(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def _append(self) -> None:
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerows(self._waiting)
        except OSError:
            with suppress(OSError):  # the disk is gone
                os.truncate(self.path, size)
            raise


def start_wandb(logger: WandbLogger) -> None:
    """Begin the W&B run; without its server, one on the disk, which `wandb sync` uploads later."""
    import wandb

    try:
        logger.experiment  # noqa: B018  (begins it)
    except (wandb.Error, OSError) as error:
        rank_zero_warn(f"W&B cannot be reached ({error}): the run is recorded offline, for `wandb sync`")
        wandb.teardown()  # it reads its settings once
        os.environ["WANDB_MODE"] = "offline"
        logger.experiment  # noqa: B018
