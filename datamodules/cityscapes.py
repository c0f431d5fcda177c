"""Cityscapes (Cordts et al., 2016): street scenes and what every pixel of them shows."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import Cityscapes as Official

from datamodules.files import DataError, listed
from datamodules.folders import Listing, formats
from datamodules.image_cache import Files, open_image
from datamodules.paired_folder import halves, pairs_in, scaled
from datamodules.pairs import PairedImages
from lit_generative.errors import UserError
from lit_generative.images import from_uint8
from lit_generative.metrics.segmentation import nearest_colour

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

    The archives ``leftImg8bit`` and ``gtFine`` lie unpacked side by side; nobody but the user may download them
    (www.cityscapes-dataset.com, licence). The pairs lie in ``train`` and ``val``, JPEGs with the
    photo on the left. ``val`` is for test, since the labels of the official test images are dummies; validation images
    are split from ``train``.

    Args:
        data_dir: The folder; default $LIT_GENERATIVE_DATA, else ``data``.
        image_size: Height and width of the images that a model gets.
        direction: ``labels_to_photo``, or the other way.
        labels: ``color``; ``ids``, one channel, label id / 33; ``one_hot``, a channel for each of the 19 classes, all 0
            where nothing counts. Pairs have colours only, and ids are no target. Translations are scored by the
            archives' ids, whatever the model gets: polegroups, which do not count, have the colour of poles.
        pairs: Arguments of `PairedImages`.

    Raises:
        DataError: Neither layout is there, halves are missing, or images cannot be read.
    """

    stored_depends_on = (*PairedImages.stored_depends_on, "labels")

    def __init__(
        self,
        data_dir: str | None = None,
        image_size: int = 256,
        direction: Literal["labels_to_photo", "photo_to_labels"] = "labels_to_photo",
        labels: Literal["color", "ids", "one_hot"] = "color",
        **pairs: Any,
    ) -> None:
        if direction not in ("labels_to_photo", "photo_to_labels") or labels not in ("color", "ids", "one_hot"):
            raise DataError(f"Cityscapes: there is no such choice: direction={direction!r}, labels={labels!r}")
        to_labels = direction == "photo_to_labels"
        if to_labels and labels != "color":
            raise DataError("Cityscapes: images are made of labels in colour: leave labels at color")
        self.labels, self.channels_b = labels, 3 if labels == "color" else 1
        # a is the photo, b its labels
        super().__init__(data_dir, image_size, direction="a_to_b" if to_labels else "b_to_a", **pairs)

    @property
    def label_side(self) -> str:
        """Which side of a pair are labels."""
        return "target" if self.direction == "a_to_b" else "source"

    @property
    def palette(self) -> Tensor:
        """The colours of the 19 classes, by train id, in [0, 1], ``(19, 3)``."""
        return torch.tensor([c.color for c in CLASSES]) / 255

    def truth(self, split: str, numbers: Tensor) -> Tensor:
        """The train ids of the pixels of pairs of ``val`` or ``test``, by their numbers in it ``(B,)``, ``(B, H, W)``.

        255 where nothing counts. They come from label ids, or from colours where there is nothing else.
        """
        pairs = self._sets[split][0][self._rows[split][numbers.cpu()]]
        if self.archives:
            return torch.from_numpy(train_ids())[pairs[:, -1].long()].long().to(numbers.device)
        return self.classes_of(from_uint8(pairs[:, self.channels_a :])).to(numbers.device)

    @staticmethod
    def classes_of(colours: Tensor) -> Tensor:
        """The train id of every pixel of labels in colour ``(B, 3, H, W)``, ``(B, H, W)``, 255 where nothing counts."""
        known = [c for c in Official.classes if c.id >= 0]
        nearest = nearest_colour(colours, torch.tensor([c.color for c in known]) / 255)
        return torch.tensor([c.train_id for c in known], device=colours.device)[nearest]

    @property
    def source_channels(self) -> int:
        return len(CLASSES) if self.labels == "one_hot" else super().source_channels

    @property
    def root(self) -> Path:
        """`data_dir`, or torchvision's folder of the data in it."""
        below = self.data_dir / "cityscapes"
        return below if below.is_dir() else self.data_dir

    @cached_property
    def archives(self) -> bool:
        """Whether there are the official archives, or one of them."""
        return any((self.root / name).is_dir() for name in ("leftImg8bit", "gtFine"))

    @property
    def channels_beside(self) -> int:
        return int(self.archives and self.labels == "color")  # label ids

    def find_pairs(self) -> dict[str, list[Files]]:
        root = self.root
        if self.archives:
            return {"train": self._official(root, "train"), "test": self._official(root, "val")}
        if (root / "train").is_dir() and (root / "val").is_dir():
            if self.labels != "color":
                raise DataError(f"{root} holds pairs in colour: labels {self.labels} need the official archives")
            return {use: pairs_in(root / name, self.skip_broken) for use, name in (("train", "train"), ("test", "val"))}
        raise DataError(
            f"Cityscapes was not found in {root}: put the unpacked leftImg8bit and gtFine there (from "
            "www.cityscapes-dataset.com), or pix2pix's pairs in train and val, or name another data_dir"
        )

    def _official(self, root: Path, split: str) -> list[Files]:
        kinds = ["color", "labelIds"] if self.labels == "color" else ["labelIds"]
        photos, labels = root / "leftImg8bit" / split, root / "gtFine" / split
        if not (photos.is_dir() and labels.is_dir()):
            raise DataError(
                f"{root} has no {split} images of both leftImg8bit and gtFine: unpack the two archives side by side"
            )
        listing = Listing(photos, self.skip_broken)
        files: list[Files] = []
        for path in listing.images:
            city, stem = path.parent, path.stem.removesuffix("_leftImg8bit")
            if city.parent == photos and stem != path.stem:
                files.append((path, *(labels / city.name / f"{stem}_gtFine_{kind}.png" for kind in kinds)))
            else:
                listing.leave_out([path])
        listing.tell()
        wanted = {path for own in files for path in own[1:]}
        if missing := sorted(path for path in wanted if not path.is_file()):
            raise DataError(f"{len(missing)} images have no labels: {listed(missing)}")
        there = {path for kind in kinds for path in labels.glob(f"*/[!.]*_gtFine_{kind}.png")}
        if alone := sorted(there - wanted):
            raise DataError(f"{len(alone)} labels have no image: {listed(alone)}")
        if not files:
            raise DataError(f"{photos} has no images")
        return files

    def read_pair(self, files: Files, size: int) -> np.ndarray:
        if not self.archives:
            photo, *labels = halves(files[0]) if len(files) == 1 else map(open_image, files)
            if photo.width != photo.height:
                raise UserError(f"{2 * photo.width}x{photo.height} pixels are not two squares side by side")
        else:
            photo, *colours = map(open_image, files[:-1])
            labels = [*colours, read_ids(files[-1])]
            for image in labels:
                if image.size != photo.size:
                    raise UserError(f"{photo.width}x{photo.height} and {image.width}x{image.height} pixels differ")
        parts = [scaled(photo, size, labels=False), *(scaled(image, size, labels=True) for image in labels)]
        return np.concatenate(parts)

    def describe_pair(self) -> str:
        return f"labels as {self.labels.replace('_', '-')}{', with their ids' if self.archives else ''}"

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        target, source = self._sides(batch[0])
        return from_uint8(target), self.source_of(source)

    def source_of(self, levels: Tensor) -> Tensor:
        """What the model gets of a stored source, float32 ``(B, C', H, W)`` in [0, 1]."""
        if self.labels == "ids":
            return levels.float() / (IDS - 1)
        if self.labels == "one_hot":
            ids = torch.tensor([c.id for c in CLASSES], device=levels.device)
            return (levels == ids.view(-1, 1, 1)).float()
        return from_uint8(levels)


def read_ids(path: Path) -> Image.Image:
    """The label ids of an image of the archives, one channel of 0 to 33; all others are 0, unlabelled."""
    try:
        with Image.open(path, formats=formats()) as image:
            ids = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(str(error).replace(f" {str(path)!r}", "")) from error
    if ids.ndim != 2:
        raise UserError("these are not label ids, which have one channel")
    return Image.fromarray(np.where((ids >= 0) & (ids < IDS), ids, 0).astype(np.uint8))  # -1 is a licence plate
