"""Images in memory: splits, conversions and loaders, the same for every data set."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningDataModule
from torch import Generator, Tensor

from datamodules.convert import convert, describe
from datamodules.files import DataError
from datamodules.loader import TensorLoader, bernoulli, fixed_generator, mutate
from lit_generative.checkpoints.plain import PlainArguments
from lit_generative.images import from_uint8

Split = Literal["train", "test"]


class ImageData(PlainArguments, LightningDataModule, ABC):
    """Images in memory, as batches ``(x, c)``; a data set says what its images are in `stored`.

    x is float32 ``(B, C, H, W)`` in [0, 1], exactly k/255; c is int64 ``(B,)`` in 0..num_classes-1. Loaders yield uint8
    levels: `on_after_batch_transfer` makes the floats, on the device. ``seed`` splits validation from training images.

    Args:
        data_dir: Folder of the data; default $LIT_GENERATIVE_DATA, else ``data``.
        batch_size: Images per batch and process.
        val_size: Images held out for validation; default: `val_fraction` of the training images.
        image_size: Height and width to bring the images to; default: as they are.
        resize: How: ``pad`` with zeros around, or ``resize`` bilinearly with antialiasing.
        binarize: ``dynamic`` draws each training pixel anew every epoch as Bernoulli(k/255), ``static`` once (not the
            file of Larochelle). With either, validation and test images are drawn once, by fixed seeds.
        random_flip: Mirror training images with probability 1/2.
        mutation: Fraction of training pixels that are replaced by uniform levels, drawn anew every time: what a
            background model for likelihood ratios is trained on (Ren et al., 2019).
        seed: Seed of the split and of the order of training.

    Raises:
        DataError: The options do not fit the images.
    """

    # The facts of a data set, given by its class:
    name: str
    num_classes: ClassVar[int] = 10
    val_fraction: ClassVar[float] = 1 / 6  # of the training images, held out for validation by default
    stored_depends_on: ClassVar[tuple[str, ...]] = ()  # options, beside the folder, that `stored` depends on
    among_others: ClassVar[bool] = True  # whether `data_dir` may hold other data sets, too

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 128,
        val_size: int | None = None,
        image_size: int | None = None,
        resize: Literal["pad", "resize"] = "pad",
        binarize: Literal["none", "dynamic", "static"] = "none",
        random_flip: bool = False,
        mutation: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.name = type(self).__name__
        size = image_size if image_size is not None else self.shape[-1]
        if resize not in ("pad", "resize") or binarize not in ("none", "dynamic", "static"):
            raise DataError(f"{self.name}: there is no such choice: resize={resize!r}, binarize={binarize!r}")
        if min(batch_size, size) < 1 or min(seed, val_size or 0) < 0:
            raise DataError(
                f"{self.name}: batch_size and image_size must be >= 1, val_size and seed >= 0; "
                f"got {batch_size}, {size}, {val_size}, {seed}"
            )
        if not 0 <= mutation <= (binarize != "static"):  # what is drawn once cannot be mutated before
            raise DataError(f"{self.name}: mutation must be in [0, 1], and 0 with static binarisation; got {mutation}")
        if resize == "pad" and size < self.shape[-1]:
            raise DataError(f"{self.name}: cannot pad {self.shape[-1]} pixels to {size}: use resize='resize'")
        self.batch_size, self.val_size, self.seed = batch_size, val_size, seed
        self.resize, self.binarize, self.random_flip, self.mutation = resize, binarize, random_flip, mutation
        self.image_shape = (self.shape[0], size, size)
        self.num_levels = 256 if binarize == "none" else 2
        self._sets: dict[str, tuple[Tensor, Tensor]] = {}  # images and labels of "train", "val" and "test"
        self._rows: dict[str, Tensor] = {}  # which of these images are in the set, if not all

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images as stored."""

    @abstractmethod
    def stored(self, split: Split) -> tuple[Tensor, Tensor]:
        """A whole split as stored: images uint8 ``(N, C, H, W)``, labels int64 ``(N,)``."""

    @property
    def data_dir(self) -> Path:
        """Resolved when used: the environment of another machine is not carried in a checkpoint."""
        return Path(self.hparams["data_dir"] or os.environ.get("LIT_GENERATIVE_DATA") or "data").expanduser()

    # ---- splits

    def setup(self, stage: str | None = None) -> None:
        """Load what the stage needs ("fit", "validate", "test", "predict"; None: everything), once."""
        if stage in ("fit", "validate", None) and "train" not in self._sets:
            images, labels = self.stored("train")
            images = self.convert(images)
            train, val = self._split(len(images))
            self._sets["train"], self._sets["val"] = (images[train], labels[train]), (images[val], labels[val])
            if self.binarize == "static":
                self._redraw("train", bernoulli)
            if self.mutation:
                self._redraw("val", partial(mutate, fraction=self.mutation))
            if self.binarize != "none":
                self._redraw("val", bernoulli)
        if stage in ("test", "predict", None) and "test" not in self._sets:
            images, labels = self.stored("test")
            self._sets["test"] = self.as_test(images), labels

    def _split(self, count: int) -> tuple[Tensor, Tensor]:
        """Of so many training images the numbers of those to train on, and of those held out."""
        held_out = max(1, int(count * self.val_fraction)) if self.val_size is None else self.val_size
        if held_out >= count:
            raise DataError(f"{self.name}: val_size={held_out} leaves none of {count} images to train on")
        order = torch.randperm(count, generator=Generator().manual_seed(self.seed))
        return order[held_out:], order[:held_out]

    def _redraw(self, name: str, draw: Callable[[Tensor, Generator], Tensor]) -> None:
        images, labels = self._sets[name]
        self._sets[name] = draw(images, fixed_generator(name)), labels

    def labels_of(self, split: Split) -> Tensor:
        """The labels that `stored` gives."""
        return self.stored(split)[1]

    def convert(self, images: Tensor) -> Tensor:
        """Bring 8-bit images of any size, grey or colour, to `image_shape`; uint8."""
        return convert(images, self.image_shape, self.resize)

    def describe_conversion(self, images: Tensor) -> str:
        """What `convert` changes in such images, in words."""
        return describe(tuple(images.shape[1:]), self.image_shape, self.resize)

    def as_test(self, images: Tensor) -> Tensor:
        """Any 8-bit images as a model meets them in test: converted, and binarised where the test images are; uint8."""
        images = self.convert(images)
        return images if self.binarize == "none" else bernoulli(images, fixed_generator("test"))

    # ---- loaders

    def train_dataloader(self) -> TensorLoader:
        loader, least = self._loader("train"), self.batch_size * self._ranks()[1]
        if (n := loader.count) < least:
            raise DataError(f"{self.name}: {n} training images, fewer than batch_size * processes = {least}")
        return loader

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self._all("val")

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self._all("test")

    predict_dataloader = test_dataloader

    def _all(self, name: str) -> TensorLoader | list[TensorLoader]:
        loader, processes = self._loader(name), self._ranks()[1]
        if 0 < loader.count < processes:
            kind, remedy = ("validation", "raise val_size") if name == "val" else ("test", "use fewer")
            raise DataError(f"{self.name}: {loader.count} {kind} images, fewer than processes: {remedy}")
        return loader if loader.count else []

    def _loader(self, name: str) -> TensorLoader:
        training, (rank, world_size) = name == "train", self._ranks()
        overfitting = getattr(self.trainer, "overfit_batches", 0) > 0  # wants the same batches every epoch
        return TensorLoader(
            *self._sets[name],
            self.batch_size,
            shuffle=training and not overfitting,
            drop_last=training,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            random_flip=training and self.random_flip,
            mutation=self.mutation if training else 0.0,
            binarize=training and self.binarize == "dynamic",
            rows=self._rows.get(name),
        )

    def sizes(self) -> dict[str, int]:
        """Images in every split ("train", "val", "test") that is set up."""
        return {name: len(self._rows.get(name, images)) for name, (images, _) in self._sets.items()}

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def describe_test(self) -> str:
        """The test images in one line, for the protocol that is printed with every number."""
        change, size = describe(self.shape, self.image_shape, self.resize), self.image_shape[-1]
        pixels = "8-bit" if self.binarize == "none" else "binarised once by a fixed seed"
        return f"test images of {self.name}, {size}x{size}{change and ', ' + change}, {pixels}"

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Levels to floats, after the transfer: a quarter of the bytes to move."""
        return from_uint8(batch[0]), batch[1]
