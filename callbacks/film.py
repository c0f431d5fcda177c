"""The grids of samples of a run, one after the other."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from callbacks._logging import run_folder


class Film(Callback):
    """Join the pictures ``images/<name>_epoch*.png`` of a run into ``images/<name>.gif`` when training ends.

    A resumed run has a folder, and so a film, of its own.

    Args:
        name: Kind of the pictures; those of `SampleGrid`, which are drawn from the same noise every time, by default.
        seconds: Time that each of them is shown.
    """

    def __init__(self, name: str = "samples", seconds: float = 0.3) -> None:
        if seconds <= 0:
            raise ValueError(f"Film: seconds must be positive, got {seconds}")
        self.name, self.seconds = name, seconds

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        path = join(sorted((folder / "images").glob(f"{self.name}_epoch*.png")), self.seconds)
        if path:
            print(f"film of {self.name:<8} {path}")
        for logger in trainer.loggers if path else []:
            if isinstance(logger, WandbLogger):
                logger.log_video(f"{self.name}_film", [str(path)], step=trainer.global_step, format=["gif"])


def join(pictures: list[Path], seconds: float) -> Path | None:
    """Write an animated GIF beside the pictures, of those that have the size of the last; None if there are none."""
    if not pictures:
        return None
    frames = [Image.open(path).convert("RGB").quantize(64) for path in pictures]
    frames = [frame for frame in frames if frame.size == frames[-1].size]
    path = pictures[-1].with_name(f"{pictures[-1].name.rsplit('_epoch', 1)[0]}.gif")
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 * seconds), loop=0)
    return path
