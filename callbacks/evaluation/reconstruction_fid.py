"""Fréchet distance between reconstructions and real images."""

from typing import Any, ClassVar, Literal

from lightning.pytorch import Trainer
from torch import Tensor, nn

from callbacks.evaluation._feature_metrics import FeatureMetrics
from lit_generative.images import to_uint8
from lit_generative.protocols import Reconstructs
from lit_generative.utils.rng import forked_rng, mixed_seed, stage_seed


class ReconstructionFID(FeatureMetrics):
    """Log ``fid_reconstructions_<extractor>`` and its KID: all test images, encoded and decoded, against real images.

    It measures what an auto-encoder loses; `FID` with the same ``reference`` also measures what its prior misses.

    Args:
        extractor: ``inception`` (plain FID: torch-fidelity's network), one that comes with the package
            (``lenet_mnist``, ``lenet_fashion_mnist``), ``auto`` (that of the data set, else ``inception``), or
            a module from uint8 images ``(B, C, H, W)`` to features ``(B, d)``.
        every_n_epochs: Epochs from one evaluation to the next; 0: in test only.
        reference: Split of the real images, or the path of an .npz with ``mu`` and ``sigma`` as pytorch-fid writes.
        rest: Arguments of `FeatureMetrics`.
    """

    protocol: ClassVar[Any] = Reconstructs
    every_batch = True
    subject, noun = "reconstructions_", "reconstructions"

    def __init__(
        self,
        extractor: nn.Module | str = "auto",
        every_n_epochs: int = 0,
        reference: Literal["train", "test"] | str = "test",
        **rest: Any,
    ) -> None:
        super().__init__(extractor, every_n_epochs=every_n_epochs, reference=reference, **rest)

    def images(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        """The images to compare with real ones, made from a batch."""
        return model.reconstruct(x, c)

    def evaluate(self, trainer: Trainer, pl_module: Any, batch: Any) -> None:
        if self.net is None:
            return
        if self._fake is None:
            self._fake = self.collector(trainer, pl_module)
            self._broken = self._seen = 0
        x, c = batch
        seed = stage_seed(self.seed, trainer.validating)
        with forked_rng(mixed_seed(seed, self._seen, trainer.global_rank), pl_module.device):
            x = self.images(pl_module, x, c)
        self._broken += int((~x.isfinite()).flatten(1).any(1).sum())
        self._fake.add(to_uint8(x), self._seen * trainer.world_size + trainer.global_rank, trainer.world_size)
        self._seen += len(x)
