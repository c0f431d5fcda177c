"""Fréchet distance between reconstructions and real images."""

from typing import Any, ClassVar, Literal

from lightning.pytorch import Trainer
from torch import Tensor, nn

from callbacks.evaluation._reference import FeatureCollector
from callbacks.evaluation.fid import FID
from lit_generative.images import to_uint8
from lit_generative.protocols import Reconstructs
from lit_generative.utils.rng import forked_rng, mixed_seed, stage_seed


class ReconstructionFID(FID):
    """Log ``fid_reconstructions_<extractor>`` and its KID: all images of a test, encoded and decoded, against real.

    What an auto-encoder loses on the way, apart from what its prior misses: `FID` with the same ``reference`` beside it
    has both. Arguments are those of :class:`FID`.
    """

    protocol: ClassVar[type] = Reconstructs
    every_batch = True
    subject, noun = "reconstructions_", "reconstructions"

    def __init__(
        self,
        extractor: nn.Module | str = "auto",
        weights_path: str | None = None,
        every_n_epochs: int = 0,
        reference: Literal["train", "test"] | str = "test",
        neighbours: int = 10_000,
        batch_size: int = 128,
        cache_dir: str | None = None,
        strict: bool = True,
        seed: int = 0,
        trust_reference: bool = False,
    ) -> None:
        super().__init__(
            extractor,
            weights_path,
            every_n_epochs=every_n_epochs,
            reference=reference,
            neighbours=neighbours,
            batch_size=batch_size,
            cache_dir=cache_dir,
            strict=strict,
            seed=seed,
            trust_reference=trust_reference,
        )

    def images(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        """What is compared with the real images, made from a batch."""
        return model.reconstruct(x, c)

    def evaluate(self, trainer: Trainer, pl_module: Any, batch: Any) -> None:
        if self.net is None:
            return
        if self._fake is None:
            keep = self._kept if trainer.testing else self.dims
            self._fake = FeatureCollector(self.net, self.dims, keep, pl_module.device)
            self._broken = self._seen = 0
        x, c = batch
        seed = stage_seed(self.seed, trainer.validating)
        with forked_rng(mixed_seed(seed, self._seen, trainer.global_rank), pl_module.device):
            x = self.images(pl_module, x, c)
        self._broken += int((~x.isfinite()).flatten(1).any(1).sum())
        self._fake.add(to_uint8(x), self._seen * trainer.world_size + trainer.global_rank, trainer.world_size)
        self._seen += len(x)

    def _origin(self) -> str:
        return ""
