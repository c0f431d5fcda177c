"""Images of two sides, a and b, for image-to-image translation."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.base import ImageData
from datamodules.files import DataError
from datamodules.loader import TensorLoader
from lit_generative.metrics.reference_statistics import cache_folder

Direction = Literal["a_to_b", "b_to_a"]


class TwoSided(ImageData):
    """Batches ``(x, c)`` of targets and sources, float32 ``(B, C, H, W)`` and ``(B, C', H, W)`` in [0, 1].

    Training images are scaled to ``load_size`` and a random square of ``image_size`` is cropped each time (random
    jitter; Isola et al., 2017, App. 6.2); all others are scaled to ``image_size``.

    Args:
        data_dir: The folder; default $LIT_GENERATIVE_DATA, else ``data``.
        image_size: Height and width of the images that the model sees.
        load_size: Height and width of training images before the crop; default 286/256 of ``image_size``. Set it to
            ``image_size`` for no jitter.
        direction: Translate side a to side b, or the reverse.
        batch_size: Images of either side per batch and process.
        val_size: Training images, of either side, held out for validation if it has no folder; default: a tenth.
        random_flip: Mirror training images with probability 1/2.
        skip_broken: Leave out what cannot be read and log it, instead of raising an error.
        cache_dir: Folder of the cache files; default ``~/.cache/lit-generative``.
        seed: Seed of the splits, the training order, the crops and the flips.
    """

    shape = (3, 256, 256)
    val_fraction = 0.1
    among_others = False
    stored_depends_on: ClassVar[tuple[str, ...]] = ("image_size", "direction", "seed")
    channels_a: int = 3  # as stored
    channels_b: int = 3
    cache_name = "pairs"
    paired = True  # whether a target is what its source should become

    def __init__(
        self,
        data_dir: str | None = None,
        image_size: int = 256,
        load_size: int | None = None,
        direction: Direction = "a_to_b",
        batch_size: int = 1,
        val_size: int | None = None,
        random_flip: bool = True,
        skip_broken: bool = False,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        load_size = round(image_size * 286 / 256) if load_size is None else load_size
        if not 1 <= image_size <= load_size:
            raise DataError(f"need 1 <= image_size <= load_size, got image_size={image_size}, load_size={load_size}")
        if direction not in ("a_to_b", "b_to_a"):
            raise DataError(f"direction must be 'a_to_b' or 'b_to_a', got {direction!r}")
        self.shape = (self.channels_b if direction == "a_to_b" else self.channels_a, image_size, image_size)
        super().__init__(data_dir, batch_size, val_size, resize="resize", random_flip=random_flip, seed=seed)
        self.image_size, self.load_size = image_size, load_size
        self.direction, self.skip_broken = direction, skip_broken
        self.cache = Path(cache_dir).expanduser() if cache_dir else cache_folder() / self.cache_name

    @property
    def source_channels(self) -> int:
        """Channels of the source images."""
        return self.channels_a if self.direction == "a_to_b" else self.channels_b

    @staticmethod
    def _needed(stage: str | None) -> tuple[str, ...]:
        """The splits that a stage needs."""
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        return needed.get(stage or "", ("train", "val", "test"))

    def _loader_of(self, name: str, *images: Any, **options: Any) -> TensorLoader:
        loader = super()._loader_of(name, *images, **options)
        loader.crop = self.image_size if name == "train" else None
        return loader
