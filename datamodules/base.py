"""Images in memory: the splits, conversions and loaders that all data sets share."""

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
    """Images held in memory and served as batches ``(x, c)``; a data set defines their `shape` and how to get `stored`.

    x is float32 ``(B, C, H, W)`` in [0, 1], exactly k/255; c is int64 ``(B,)`` in 0..num_classes-1. Loaders yield uint8
    levels, which `on_after_batch_transfer` turns into floats on the device.

    Args:
        data_dir: Folder of the data; default $LIT_GENERATIVE_DATA, else ``data``.
        batch_size: Images per batch and process.
        val_size: Training images held out for validation; default: the fraction `val_fraction` of them.
        image_size: Height and width that images are converted to; default: unchanged.
        resize: How to change the size: ``pad`` with zeros, or ``resize`` bilinearly with antialiasing.
        binarize: ``dynamic`` draws each training pixel from Bernoulli(k/255) anew every epoch, ``static`` once (not
            Larochelle's fixed binarisation). Either way, validation and test images are drawn once with fixed seeds.
        random_flip: Mirror each training image with probability 1/2.
        mutation: Fraction of training pixels replaced by uniformly random levels, drawn anew every epoch, to train a
            background model for likelihood ratios (Ren et al., 2019).
        seed: Seed of the training/validation split and of the training order.

    Raises:
        DataError: An option is out of range or does not fit the images.
    """

    # Set by each data set:
    name: str
    num_classes: ClassVar[int] = 10
    val_fraction: ClassVar[float] = 1 / 6  # of the training images, held out for validation by default
    stored_depends_on: ClassVar[tuple[str, ...]] = ()  # options other than the folder that change what `stored` returns
    among_others: ClassVar[bool] = True  # whether `data_dir` may also hold other data sets

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
        side = self.shape[-1]
        size = side if image_size is None else image_size
        if resize not in ("pad", "resize") or binarize not in ("none", "dynamic", "static"):
            raise DataError(
                f"{self.name}: resize must be 'pad' or 'resize', and binarize 'none', 'dynamic' or 'static'; "
                f"got resize={resize!r}, binarize={binarize!r}"
            )
        if min(batch_size, size) < 1 or min(seed, val_size or 0) < 0:
            raise DataError(
                f"{self.name}: batch_size and image_size must be >= 1, val_size and seed >= 0; "
                f"got {batch_size}, {size}, {val_size}, {seed}"
            )
        if not 0 <= mutation <= (binarize != "static"):  # mutation precedes binarisation, which then is drawn only once
            raise DataError(f"{self.name}: mutation must be in [0, 1], or 0 if binarize='static'; got {mutation}")
        if resize == "pad" and size < side:
            raise DataError(f"{self.name}: image_size must be >= {side} to pad, got {size}: use resize='resize'")
        self.batch_size, self.val_size, self.seed = batch_size, val_size, seed
        self.resize, self.binarize, self.random_flip, self.mutation = resize, binarize, random_flip, mutation
        self.image_shape = (self.shape[0], size, size)
        self.num_levels = 256 if binarize == "none" else 2
        self._sets: dict[str, tuple[Tensor, Tensor]] = {}  # images and labels of "train", "val" and "test"
        self._rows: dict[str, Tensor] = {}  # indices of the images in use, for splits that use only some of theirs

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images as stored."""

    @abstractmethod
    def stored(self, split: Split) -> tuple[Tensor, Tensor]:
        """A whole split, before any conversion: images uint8 ``(N, C, H, W)``, labels int64 ``(N,)``."""

    @property
    def data_dir(self) -> Path:
        """The folder of the data, resolved on use so that checkpoints do not record this machine's environment."""
        return Path(self.hparams["data_dir"] or os.environ.get("LIT_GENERATIVE_DATA") or "data").expanduser()

    # ---- splits

    def setup(self, stage: str | None = None) -> None:
        """Load the splits that the stage needs ("fit", "validate", "test", "predict"; None: all), each only once."""
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
        """Split ``count`` training images: the indices of those to train on, and of those held out for validation."""
        held_out = max(1, int(count * self.val_fraction)) if self.val_size is None else self.val_size
        self._require_rest("val_size", held_out, count)
        order = self._permutation(count)
        return order[held_out:], order[:held_out]

    def _permutation(self, count: int) -> Tensor:
        """The indices 0..count-1 in a random order that depends on ``seed`` alone."""
        return torch.randperm(count, generator=Generator().manual_seed(self.seed))

    def _require_rest(self, option: str, held_out: int, count: int) -> None:
        if held_out >= count:
            raise DataError(f"{self.name}: {option} must be smaller than the number of images, {count}; got {held_out}")

    def _redraw(self, name: str, draw: Callable[[Tensor, Generator], Tensor]) -> None:
        images, labels = self._sets[name]
        self._sets[name] = draw(images, fixed_generator(name)), labels

    def held_out(self) -> Tensor:
        """The images of the validation split, as a model sees them there, uint8 ``(N, C, H, W)``."""
        self.setup("validate")
        (images, _), rows = self._sets["val"], self._rows.get("val")
        return images if rows is None else images[rows]

    def labels_of(self, split: Split) -> Tensor:
        """The labels of a whole split, int64 ``(N,)``, in the order of `stored`."""
        return self.stored(split)[1]

    def convert(self, images: Tensor) -> Tensor:
        """Convert uint8 images of any size, grey or RGB, to `image_shape`."""
        return convert(images, self.image_shape, self.resize)

    def describe_conversion(self, images: Tensor) -> str:
        """What `convert` does to images of this shape, in words; empty if nothing."""
        return describe(tuple(images.shape[1:]), self.image_shape, self.resize)

    def as_test(self, images: Tensor) -> Tensor:
        """Prepare any uint8 images as the test images are: converted, and binarised if those are; uint8."""
        images = self.convert(images)
        return images if self.binarize == "none" else bernoulli(images, fixed_generator("test"))

    # ---- loaders

    def train_dataloader(self) -> TensorLoader:
        loader, least = self._loader("train"), self.batch_size * self._ranks()[1]
        if (n := loader.count) < least:
            raise DataError(
                f"{self.name}: need batch_size * processes = {least} training images, got {n}: lower batch_size"
            )
        return loader

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self._all("val")

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self._all("test")

    predict_dataloader = test_dataloader

    def _all(self, name: str) -> TensorLoader | list[TensorLoader]:
        loader, processes = self._loader(name), self._ranks()[1]
        if 0 < loader.count < processes:
            kind, remedy = ("validation", "raise val_size") if name == "val" else ("test", "use fewer processes")
            raise DataError(
                f"{self.name}: {processes} processes need as many {kind} images, got {loader.count}: {remedy}"
            )
        return loader if loader.count else []

    def _loader(self, name: str) -> Any:
        return self._loader_of(name, *self._sets[name], self._rows.get(name))

    def _loader_of(
        self, name: str, images: Tensor, labels: Tensor, rows: Tensor | None = None, seed: int | None = None
    ) -> TensorLoader:
        """Batches of a split whose images these are; ``seed`` for another order than the data's own."""
        training, (rank, world_size) = name == "train", self._ranks()
        overfitting = getattr(self.trainer, "overfit_batches", 0) > 0  # needs the same batches every epoch
        return TensorLoader(
            images,
            labels,
            self.batch_size,
            shuffle=training and not overfitting,
            drop_last=training,
            seed=self.seed if seed is None else seed,
            rank=rank,
            world_size=world_size,
            random_flip=training and self.random_flip,
            mutation=self.mutation if training else 0.0,
            binarize=training and self.binarize == "dynamic",
            rows=rows,
        )

    def sizes(self) -> dict[str, int]:
        """The number of images in each split ("train", "val", "test") that is set up."""
        return {name: len(self._rows.get(name, images)) for name, (images, _) in self._sets.items()}

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def describe_test(self) -> str:
        """The test images in one line, for the evaluation protocol that is printed with every score."""
        change, size = describe(self.shape, self.image_shape, self.resize), self.image_shape[-1]
        pixels = "8-bit" if self.binarize == "none" else "binarised once by a fixed seed"
        return f"test images of {self.name}, {size}x{size}{change and ', ' + change}, {pixels}"

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Turn levels into floats after the transfer, which so moves a quarter of the bytes."""
        return from_uint8(batch[0]), batch[1]
