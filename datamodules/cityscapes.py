"""Cityscapes (Cordts et al., 2016): street scenes and what every pixel of them shows."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import Cityscapes as Official

from datamodules.files import DataError
from datamodules.image_cache import Files, open_image
from datamodules.paired_folder import halves, pairs_in, scaled
from datamodules.pairs import PairedImages
from lit_generative.images import from_uint8
from lit_generative.segmentation import nearest_colour

IDS = 34  # of labels, 0 to 33
CLASSES = [c for c in Official.classes if 0 <= c.train_id < 255]  # the 19 that are evaluated, by train id
VOID = 255


def train_ids() -> np.ndarray:
    """The train id of every label id, 255 where there is none, uint8 ``(256,)``."""
    table = np.full(256, VOID, np.uint8)
    for c in CLASSES:
        table[c.id] = c.train_id
    return table


class Cityscapes(PairedImages):
    """Photos and labels, from the official archives or from the 256x256 pairs that pix2pix made of them.

    The archives ``leftImg8bit`` and ``gtFine``, unpacked side by side, are read through torchvision; nobody but the
    user may download them (www.cityscapes-dataset.com, licence). The pairs lie in ``train`` and ``val``, JPEGs with the
    photo on the left. ``val`` is for test, since the labels of the official test images are dummies; validation images
    are split from ``train``.

    Args:
        data_dir: The folder; default $LIT_GENERATIVE_DATA, else ``data``.
        direction: ``labels_to_photo``, or the other way.
        labels: ``color``; ``ids``, one channel, label id / 33; ``one_hot``, a channel for each of the 19 classes, all 0
            where nothing counts. Pairs have colours only, and ids are no target.
        image_size, load_size, batch_size, val_size, random_flip, skip_broken, cache_dir, seed: As of `PairedImages`.

    Raises:
        DataError: Neither layout is there, halves are missing, or images cannot be read.
    """

    stored_depends_on = (*PairedImages.stored_depends_on, "labels")

    def __init__(
        self,
        data_dir: str | None = None,
        image_size: int = 256,
        load_size: int | None = None,
        direction: Literal["labels_to_photo", "photo_to_labels"] = "labels_to_photo",
        labels: Literal["color", "ids", "one_hot"] = "color",
        batch_size: int = 1,
        val_size: int | None = None,
        random_flip: bool = True,
        skip_broken: bool = False,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        if direction not in ("labels_to_photo", "photo_to_labels") or labels not in ("color", "ids", "one_hot"):
            raise DataError(f"Cityscapes: no such choice: direction={direction!r}, labels={labels!r}")
        to_labels = direction == "photo_to_labels"
        if to_labels and labels != "color":
            raise DataError("Cityscapes: images are made of labels in colour: leave labels at color")
        self.labels, self.channels_b = labels, 3 if labels == "color" else 1
        # a is the photo, b its labels
        way: Any = "a_to_b" if to_labels else "b_to_a"
        super().__init__(
            data_dir, image_size, load_size, way, batch_size, val_size, random_flip, skip_broken, cache_dir, seed
        )

    @property
    def label_side(self) -> str:
        """Which side of a pair are labels."""
        return "target" if self.direction == "a_to_b" else "source"

    @property
    def palette(self) -> Tensor:
        """The colours of the 19 classes, by train id, in [0, 1], ``(19, 3)``."""
        return torch.tensor([c.color for c in CLASSES]) / 255

    def classes_of(self, labels: Tensor) -> Tensor:
        """The train id of every pixel of label images as a model gets them, ``(B, H, W)``, 255 where nothing counts."""
        if self.labels == "one_hot":
            return torch.where(labels.any(1), labels.argmax(1), VOID)
        ids = torch.tensor([c.id for c in Official.classes if c.id >= 0], device=labels.device)
        if self.labels == "ids":
            found = (labels[:, 0] * (IDS - 1)).round().long()
        else:
            colours = torch.tensor([c.color for c in Official.classes if c.id >= 0], device=labels.device) / 255
            found = ids[nearest_colour(labels, colours)]
        return torch.from_numpy(train_ids()).to(labels.device)[found].long()

    @property
    def source_channels(self) -> int:
        return len(CLASSES) if self.labels == "one_hot" else super().source_channels

    def find_pairs(self) -> dict[str, list[Files]]:
        root = self.data_dir
        # torchvision's name, or the data's own folder below a common one
        root = root / "cityscapes" if (root / "cityscapes").is_dir() else root
        if (root / "leftImg8bit").is_dir() or (root / "gtFine").is_dir():
            return {"train": self._official(root, "train"), "test": self._official(root, "val")}
        if (root / "train").is_dir() and (root / "val").is_dir():
            if self.labels != "color":
                raise DataError(f"{root} holds pairs in colour: labels {self.labels} need the official archives")
            return {"train": pairs_in(root / "train"), "test": pairs_in(root / "val")}
        raise DataError(
            f"Cityscapes was not found in {root}: put the unpacked leftImg8bit and gtFine there (from "
            "www.cityscapes-dataset.com), or pix2pix's pairs in train and val, or name another data_dir"
        )

    def _official(self, root: Path, split: str) -> list[Files]:
        kind = "color" if self.labels == "color" else "semantic"
        try:
            found = Official(str(root), split, "fine", kind)
        except (RuntimeError, FileNotFoundError) as error:
            raise DataError(
                f"{root} has no {split} images of both leftImg8bit and gtFine: unpack the two archives side by side"
            ) from error
        files: list[Files] = [
            (Path(image), Path(*target)) for image, target in zip(found.images, found.targets, strict=True)
        ]
        if missing := [own[1] for own in files if not own[1].is_file()]:
            raise DataError(f"{len(missing)} images have no labels: {', '.join(map(str, missing[:5]))}")
        ending = "color" if self.labels == "color" else "labelIds"
        labelled = set((root / "gtFine" / split).glob(f"*/*_gtFine_{ending}.png"))
        if missing := sorted(labelled - {own[1] for own in files}):
            raise DataError(f"{len(missing)} labels have no image: {', '.join(map(str, missing[:5]))}")
        if not files:
            raise DataError(f"{root / 'leftImg8bit' / split} has no images")
        return files

    def read_pair(self, files: Files, size: int) -> np.ndarray:
        if len(files) == 1:
            photo, labels = halves(files[0])
            if photo.width != photo.height:
                raise ValueError(f"{2 * photo.width}x{photo.height} pixels are not two squares side by side")
        else:
            photo, labels = open_image(files[0]), read_labels(files[1], self.labels)
            if photo.size != labels.size:
                raise ValueError(f"{photo.width}x{photo.height} and {labels.width}x{labels.height} pixels differ")
        return np.concatenate([scaled(photo, size, labels=False), scaled(labels, size, labels=True)])

    def describe_pair(self) -> str:
        return f"labels as {self.labels.replace('_', '-')}"

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        target, source = self._sides(batch[0])
        return from_uint8(target), self.source_of(source)

    def source_of(self, levels: Tensor) -> Tensor:
        """What the model gets of a stored source, float32 ``(B, C', H, W)`` in [0, 1]."""
        if self.labels == "ids":
            return levels.float() / (IDS - 1)
        if self.labels == "one_hot":
            return (levels == torch.arange(len(CLASSES), device=levels.device).view(-1, 1, 1)).float()
        return from_uint8(levels)


def read_labels(path: Path, kind: str) -> Image.Image:
    """A label image of the archives: colours as RGB (they are RGBA there), ids or train ids as one channel."""
    if kind == "color":
        return open_image(path)
    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(str(error).replace(f" {str(path)!r}", "")) from error
    if ids.ndim != 2:
        raise ValueError("these are no label ids, of one channel")
    return Image.fromarray(train_ids()[ids] if kind == "one_hot" else ids.astype(np.uint8))
