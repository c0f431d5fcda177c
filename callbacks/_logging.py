"""Images for any logger: always a PNG in the run's folder, and the logger's own panel where it has one."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from lit_generative.images import save_png, to_uint8
from lit_generative.utils.files import atomic_write


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of this run; None when nothing is to be written (``fast_dev_run``). Call it on all ranks."""
    folder = trainer.log_dir  # broadcasts
    dry_run = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by one of its connectors
    return None if folder is None or dry_run else Path(folder)


def _when(trainer: Trainer) -> str:
    stage: Any = trainer.state.fn
    if stage in (None, TrainerFn.FITTING):
        return f"epoch{trainer.current_epoch:04d}_step{trainer.global_step:07d}"
    return stage.value


def log_image(trainer: Trainer, folder: Path | None, name: str, image: Tensor) -> None:
    """Write ``image`` (3, H, W) in [0, 1] as ``images/<name>_epoch..._step....png`` and show it in every logger.

    ``folder`` is that of `run_folder`, which is called on all ranks; here only rank 0 does anything.
    """
    epoch, step = trainer.current_epoch, trainer.global_step
    if folder is None or not trainer.is_global_zero:
        return
    try:
        save_png(image, folder / "images" / f"{name}_{_when(trainer)}.png")
    except OSError as error:  # a full disk costs an image, not the run
        rank_zero_warn(f"the image {name} could not be written: {error}")
        return
    levels = to_uint8(image)  # loggers would truncate floats, or take them for levels
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # W&B's media panels cannot have another x axis than its own steps: the caption has ours
            try:
                logger.log_image(
                    name, [levels.permute(1, 2, 0).numpy()], step=step, caption=[f"epoch {epoch}, step {step}"]
                )
            except (OSError, RuntimeError) as error:
                rank_zero_warn(f"the image {name} could not be logged to W&B: {error}")
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, levels, step)


def log_animation(trainer: Trainer, folder: Path | None, name: str, frames: list[Tensor], seconds: float = 0.1) -> None:
    """Write frames (3, H, W) in [0, 1] as ``images/<name>_epoch..._step....gif``; otherwise as `log_image`."""
    if folder is not None and trainer.is_global_zero:
        images = [Image.fromarray(to_uint8(frame).permute(1, 2, 0).numpy()) for frame in frames]
        write_animation(trainer, folder / "images" / f"{name}_{_when(trainer)}.gif", images, seconds)


def write_animation(trainer: Trainer, path: Path, images: list[Image.Image], seconds: float) -> None:
    """Write an animated GIF of the images that have the size of the last, and show it where a logger can."""
    frames = [image.convert("RGB").quantize(64) for image in images if image.size == images[-1].size]
    try:
        with atomic_write(path) as file:
            timing: Any = {"duration": round(1000 * seconds), "loop": 0}
            frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], **timing)
    except OSError as error:
        rank_zero_warn(f"the animation {path.name} could not be written: {error}")
        return
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            name = path.stem.split("_epoch")[0]
            try:
                logger.log_video(f"{name}_animation", [str(path)], step=trainer.global_step, format=["gif"])
            except (OSError, RuntimeError) as error:
                rank_zero_warn(f"the animation {name} could not be logged to W&B: {error}")
