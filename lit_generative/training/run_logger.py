"""The curves of a run as CSV, continued where the run goes on."""

import csv
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lit_generative.errors import UserError
from lit_generative.utils.files import atomic_write


class RunLogger(CSVLogger):
    """Lightning's CSV logger, which continues the rows of a run that is resumed in its folder.

    Args:
        save_dir, name, version: ``<save_dir>/<name>/version_<version>``; None: the next version.
        steps: Steps of the checkpoint that the run goes on from; later rows are those of steps that are lost.
        curves: Whether there are rows; else it gives the run its folder, and nothing more.

    Raises:
        ValueError: ``name`` leads out of ``save_dir``.
    """

    def __init__(
        self, save_dir: Path, name: str, version: int | None = None, steps: int = 0, curves: bool = True
    ) -> None:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"--name {name} leads out of {save_dir}: use --trainer.default_root_dir for another place")
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=1)  # a run that is killed has its rows
        self.steps, self.curves = steps, curves

    def _get_next_version(self) -> int:
        """The next version; its folder is made at once, so that no run that starts at the same time has it too."""
        runs = Path(self.root_dir)
        numbers = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
        version = max((int(number) + 1 for number in numbers if number.isdigit()), default=0)
        while getattr(rank_zero_only, "rank", 0) == 0:  # others are told where the first writes
            try:
                (runs / f"version_{version}").mkdir(parents=True)
                break
            except FileExistsError:
                version += 1
        return version

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self.curves:
            super().log_metrics(metrics, step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir, self.steps)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        rows, path = self.experiment, Path(self.experiment.metrics_file_path)
        rows.whole = [*rows.metrics_keys], path.stat().st_size if path.is_file() else 0
        try:
            super().save()
        except OSError as error:  # rows wait in memory for the next time
            rows.metrics_keys, size = rows.whole
            with suppress(OSError):  # gone
                os.truncate(path, size) if size else path.unlink()
            rank_zero_warn(f"{self.experiment.metrics_file_path} could not be written: {error}")


class _Rows(ExperimentWriter):
    whole: tuple[list[str], int]  # columns and size of the file when it last held whole rows

    def __init__(self, log_dir: str, steps: int) -> None:
        self._steps = steps
        self._there: dict[int, set[str]] = {}
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """In Lightning the place where older rows are removed."""
        path = Path(self.metrics_file_path)
        if not self._steps:
            return super()._check_log_dir_exists()
        if not path.is_file():
            return
        lines = path.read_text().splitlines(keepends=True)
        # a kill may have torn the last line
        rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        rows = [row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < self._steps]
        self.metrics_keys = list(rows[0]) if rows else []
        for row in rows:
            self._there.setdefault(int(row["step"]), set()).update(key for key, value in row.items() if value)
        self._write(rows)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="") as file:
            rows = list(csv.DictReader(file))
        self._write(rows)
        self.whole = [*fieldnames], Path(self.metrics_file_path).stat().st_size

    def _write(self, rows: list[dict[str, str]]) -> None:
        with atomic_write(Path(self.metrics_file_path), "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            if self.metrics_keys:
                writer.writeheader()
            writer.writerows(rows)

    def log_hparams(self, params: dict[str, Any]) -> None:
        if not self._steps:  # else the file says with what the run began, and a new config.yaml with what it goes on
            super().log_hparams(params)

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if not self._there.get(step or 0, set()) >= metrics_dict.keys():  # else written after the checkpoint was
            super().log_metrics(metrics_dict, step)


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
