"""Cityscapes (Cordts et al., 2016): street scenes with a class for every pixel."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import Cityscapes as Official

from datamodules.files import DataError, listed
from datamodules.folders import Listing
from datamodules.image_cache import Files, open_image, opened
from datamodules.paired_folder import halves, pairs_in, scaled
from datamodules.pairs import PairedImages
from lit_generative.errors import UserError
from lit_generative.images import from_uint8
from lit_generative.metrics.segmentation import nearest_colour

IDS = 34  # label ids are 0 to 33
CLASSES = [c for c in Official.classes if 0 <= c.train_id < 255]  # the 19 that are evaluated, by train id
VOID = 255  # the train id of pixels that are not evaluated


def train_ids() -> np.ndarray:
    """The train id of every label id, 255 for those that are not evaluated, uint8 ``(256,)``."""
    table = np.full(256, VOID, np.uint8)
    table[[c.id for c in CLASSES]] = [c.train_id for c in CLASSES]
    return table


class Cityscapes(PairedImages):
    """Photos and labels, from the official archives or from the 256x256 pairs prepared by pix2pix's authors.

    ``data_dir``, or ``cityscapes`` in it, holds either the unpacked archives ``leftImg8bit`` and ``gtFine``, which the
    licence lets only the user download (www.cityscapes-dataset.com), or folders ``train`` and ``val`` of pairs, JPEGs
    with the photo on the left. ``val`` is the test split, since the official test labels are not public; validation
    images are held out from ``train``.

    Args:
        data_dir: The folder; default $LIT_GENERATIVE_DATA, else ``data``.
        image_size: Height and width of the images that the model sees.
        direction: ``labels_to_photo`` or the reverse.
        labels: How the model sees labels: in ``color``; as ``ids``, one channel, label id / 33; or ``one_hot``, one
            channel for each of the 19 evaluated classes, all 0 for other pixels. Pairs offer ``color`` only, as do
            targets. Translations are scored by the archives' label ids, whatever the model sees, because polegroups
            (not evaluated) have the colour of poles.
        pairs: Arguments of `PairedImages`.

    Raises:
        DataError: Neither layout is found, labels or photos are missing, or images cannot be read.
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
            raise DataError(
                "Cityscapes: direction must be 'labels_to_photo' or 'photo_to_labels', and labels 'color', 'ids' or "
                f"'one_hot'; got direction={direction!r}, labels={labels!r}"
            )
        to_labels = direction == "photo_to_labels"
        if to_labels and labels != "color":
            raise DataError(f"Cityscapes: labels must be 'color' to be the target of a translation, got {labels!r}")
        self.labels, self.channels_b = labels, 3 if labels == "color" else 1
        # side a is the photo, side b its labels
        super().__init__(data_dir, image_size, direction="a_to_b" if to_labels else "b_to_a", **pairs)

    @property
    def label_side(self) -> str:
        """Which side of a pair is the labels."""
        return "target" if self.direction == "a_to_b" else "source"

    @property
    def palette(self) -> Tensor:
        """The colours of the 19 classes, by train id, in [0, 1], ``(19, 3)``."""
        return torch.tensor([c.color for c in CLASSES]) / 255

    def truth(self, split: str, numbers: Tensor) -> Tensor:
        """The train id of each pixel, int64 ``(B, H, W)``, 255 if not evaluated, of pairs of ``val`` or ``test``.

        ``numbers`` ``(B,)`` are indices into the split. Train ids come from label ids, or else from colours.
        """
        pairs = self._sets[split][0][self._rows[split][numbers.cpu()]]
        if self.archives:
            return torch.from_numpy(train_ids())[pairs[:, -1].long()].long().to(numbers.device)
        return self.classes_of(from_uint8(pairs[:, self.channels_a :])).to(numbers.device)

    @staticmethod
    def classes_of(colours: Tensor) -> Tensor:
        """The train id of each pixel of coloured labels ``(B, 3, H, W)``, 255 if not evaluated, ``(B, H, W)``."""
        known = [c for c in Official.classes if c.id >= 0]
        nearest = nearest_colour(colours, torch.tensor([c.color for c in known]) / 255)
        return torch.tensor([c.train_id for c in known], device=colours.device)[nearest]

    @property
    def source_channels(self) -> int:
        return len(CLASSES) if self.labels == "one_hot" else super().source_channels

    @property
    def root(self) -> Path:
        """`data_dir`, or the folder ``cityscapes`` in it (torchvision's layout) if there is one."""
        below = self.data_dir / "cityscapes"
        return below if below.is_dir() else self.data_dir

    @cached_property
    def archives(self) -> bool:
        """Whether the layout is that of the official archives, of which one may be missing."""
        return any((self.root / name).is_dir() for name in ("leftImg8bit", "gtFine"))

    @property
    def extra_channels(self) -> int:
        return int(self.archives and self.labels == "color")  # label ids

    def find_pairs(self) -> dict[str, list[Files]]:
        root = self.root
        if self.archives:
            return {"train": self._official(root, "train"), "test": self._official(root, "val")}
        if (root / "train").is_dir() and (root / "val").is_dir():
            if self.labels != "color":
                raise DataError(f"{root} holds pairs in colour, but labels={self.labels!r} needs the official archives")
            return {use: pairs_in(root / name, self.skip_broken) for use, name in (("train", "train"), ("test", "val"))}
        raise DataError(
            f"Cityscapes was not found in {root}: put the unpacked leftImg8bit and gtFine there (from "
            "www.cityscapes-dataset.com), or pix2pix's pairs in train and val, or choose another data_dir"
        )

    def _official(self, root: Path, split: str) -> list[Files]:
        kinds = ["color", "labelIds"] if self.labels == "color" else ["labelIds"]
        photos, labels = root / "leftImg8bit" / split, root / "gtFine" / split
        if not (photos.is_dir() and labels.is_dir()):
            raise DataError(f"{root} must have {split} in both leftImg8bit and gtFine: unpack the two archives there")
        listing = Listing(photos, self.skip_broken)
        files: list[Files] = []
        for path in listing.images:
            city, stem = path.parent, path.stem.removesuffix("_leftImg8bit")
            if city.parent == photos and stem != path.stem:
                files.append((path, *(labels / city.name / f"{stem}_gtFine_{kind}.png" for kind in kinds)))
            else:
                listing.leave_out([path])
        listing.report()
        wanted = {path for own in files for path in own[1:]}
        if missing := sorted(path for path in wanted if not path.is_file()):
            raise DataError(f"{len(missing)} files of labels are missing: {listed(missing)}: unpack gtFine again")
        there = {path for kind in kinds for path in labels.glob(f"*/[!.]*_gtFine_{kind}.png")}
        if alone := sorted(there - wanted):
            raise DataError(f"{len(alone)} files of labels have no image: {listed(alone)}: unpack leftImg8bit again")
        if not files:
            raise DataError(f"{photos} has no images: unpack leftImg8bit again")
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
                    raise UserError(
                        f"the photo is {photo.width}x{photo.height}, its labels {image.width}x{image.height}"
                    )
        return np.concatenate([scaled(photo, size, labels=False), *(scaled(i, size, labels=True) for i in labels)])

    def describe_pair(self) -> str:
        return f"labels as {self.labels.replace('_', '-')}{', with their ids' if self.archives else ''}"

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        target, source = self._sides(batch[0])
        return from_uint8(target), self.source_of(source)

    def source_of(self, levels: Tensor) -> Tensor:
        """Encode a stored source for the model, float32 ``(B, C', H, W)`` in [0, 1]."""
        if self.labels == "ids":
            return levels.float() / (IDS - 1)
        if self.labels == "one_hot":
            ids = torch.tensor([c.id for c in CLASSES], device=levels.device)
            return (levels == ids.view(-1, 1, 1)).float()
        return from_uint8(levels)


def read_ids(path: Path) -> Image.Image:
    """The label ids in a file of the archives, one channel of 0 to 33; any other value becomes 0 (unlabelled)."""
    with opened(path) as image:
        ids = np.asarray(image)
    if ids.ndim != 2:
        raise UserError(f"label ids must have one channel, got {ids.shape[-1]}")
    return Image.fromarray(np.where((ids >= 0) & (ids < IDS), ids, 0).astype(np.uint8))  # -1 is a licence plate
