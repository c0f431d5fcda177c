"""One picture of a model, drawn again and again."""

from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._first_batch import FirstBatch
from callbacks._logging import log_image, run_folder
from lit_generative.errors import UserError
from lit_generative.protocols import require
from lit_generative.randomness import forked_rng
from lit_generative.sampling import Conditions


class Picture(FirstBatch):
    """Draw every ``every_n_epochs`` epochs and in test, from the same noise every time.

    One rank writes; the RNG is forked, so that drawing never changes training.
    """

    name: ClassVar[str]
    protocol: ClassVar[type]
    samples: ClassVar[bool] = False  # whether images are drawn from the model: with labels where it knows classes
    guidance: float = 0.0

    def __init__(self, every_n_epochs: int = 1, seed: int = 0) -> None:
        if every_n_epochs < 1:
            raise UserError(f"{type(self).__name__}: every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs, self.seed = every_n_epochs, seed

    def draw(self, model: Any, batch: Any) -> Tensor:
        """The picture, (3, H, W) in [0, 1]."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, self.protocol, self)
        if self.samples and stage != "predict":
            self.conditions = Conditions(self, pl_module, getattr(trainer, "datamodule", None), self.guidance)

    def describe_test(self) -> str:
        """With which labels samples were drawn, where there are any."""
        return self.conditions.describe() if self.samples else ""

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        with forked_rng(self.seed, pl_module.device):
            picture = self.draw(pl_module, batch)
        log_image(trainer, run_folder(trainer), self.name, picture)
