"""The images of a run, such as its grids of samples, as an animation."""

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from callbacks._logging import run_folder, write_animation
from lit_generative.errors import UserError


class TrainingAnimation(Callback):
    """Join the images ``images/<name>_epoch*.png`` of a run into ``images/<name>.gif`` when training ends.

    A run that was resumed has one animation of all its parts.

    Args:
        name: Name of the images; default: those of `SampleGrid`, which are drawn from the same noise every time.
        seconds: Time that each image is shown.
    """

    def __init__(self, name: str = "samples", seconds: float = 0.3) -> None:
        if seconds <= 0:
            raise UserError(f"TrainingAnimation: seconds must be > 0, got {seconds}")
        self.name, self.seconds = name, seconds

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        images = sorted((folder / "images").glob(f"{self.name}_epoch*.png"))
        if images:
            path = folder / "images" / f"{self.name}.gif"
            write_animation(trainer, path, [Image.open(image) for image in images], self.seconds)
            print(f"animation of {self.name}: {path}")
