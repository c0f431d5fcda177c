"""The grids of samples of a run, one after the other."""

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from callbacks._logging import run_folder, write_animation
from lit_generative.errors import UserError


class TrainingAnimation(Callback):
    """Join the pictures ``images/<name>_epoch*.png`` of a run into ``images/<name>.gif`` when training ends.

    A run that `--resume` went on with has one film of all its parts.

    Args:
        name: Kind of the pictures; those of `SampleGrid`, which are drawn from the same noise every time, by default.
        seconds: Time that each of them is shown.
    """

    def __init__(self, name: str = "samples", seconds: float = 0.3) -> None:
        if seconds <= 0:
            raise UserError(f"TrainingAnimation: seconds must be positive, got {seconds}")
        self.name, self.seconds = name, seconds

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        pictures = sorted((folder / "images").glob(f"{self.name}_epoch*.png"))
        if pictures:
            path = folder / "images" / f"{self.name}.gif"
            write_animation(trainer, path, [Image.open(picture) for picture in pictures], self.seconds)
            print(f"film of {self.name:<8} {path}")
