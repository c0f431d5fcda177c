"""The grids of samples of a run, one after the other."""

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from callbacks._logging import run_folder, write_animation
from lit_generative.errors import UserError


class TrainingAnimation(Callback):
    """Join the images ``images/<name>_epoch*.png`` of a run into ``images/<name>.gif`` when training ends.

    A resumed run has one animation of all its parts.

    Args:
        name: Kind of the images; by default those of `SampleGrid`, which are drawn from the same noise every time.
        seconds: Time that each of them is shown.
    """

    def __init__(self, name: str = "samples", seconds: float = 0.3) -> None:
        if seconds <= 0:
            raise UserError(f"TrainingAnimation: seconds must be > 0, got {seconds}")
        self.name, self.seconds = name, seconds

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        frames = sorted((folder / "images").glob(f"{self.name}_epoch*.png"))
        if frames:
            path = folder / "images" / f"{self.name}.gif"
            write_animation(trainer, path, [Image.open(frame) for frame in frames], self.seconds)
            print(f"{'animation':<16} {path}")
