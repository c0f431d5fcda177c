"""Pictures for any logger: always a PNG in the run's folder, and the logger's own panel where it has one."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_generative.images import save_png, to_uint8


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of this run; None when nothing is to be written (``fast_dev_run``). Call it on all ranks."""
    folder = trainer.log_dir  # broadcasts
    dry_run = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by one of its connectors
    return None if folder is None or dry_run else Path(folder)


def log_image(trainer: Trainer, folder: Path | None, name: str, picture: Tensor) -> None:
    """Write ``picture`` (3, H, W) in [0, 1] as ``images/<name>_epoch..._step....png`` and show it in every logger.

    ``folder`` is what `run_folder` said, on all ranks; here only rank 0 does anything.
    """
    epoch, step = trainer.current_epoch, trainer.global_step
    if folder is None or not trainer.is_global_zero:
        return
    stage: Any = trainer.state.fn
    when = f"epoch{epoch:04d}_step{step:07d}" if stage in (None, TrainerFn.FITTING) else stage.value
    save_png(picture, folder / "images" / f"{name}_{when}.png")
    levels = to_uint8(picture)  # loggers would truncate floats, or take them for levels
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # W&B's media panels have no step axis of their own choice: the caption carries it
            logger.log_image(
                name, [levels.permute(1, 2, 0).numpy()], step=step, caption=[f"epoch {epoch}, step {step}"]
            )
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, levels, step)
