"""A folder of images to translate, each in its original size."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from datamodules.files import DataError, listed
from datamodules.folders import Listing
from datamodules.image_cache import open_image, opened
from lit_generative.checkpoints.plain import PlainArguments
from lit_generative.errors import UserError
from lit_generative.images import from_uint8


class Pictures(PlainArguments, LightningDataModule):
    """The images of a folder, one at a time: ``(c, names)``, RGB float32 ``(1, 3, H, W)`` in [0, 1] and file names.

    Args:
        data_dir: The folder; its subfolders are not searched.

    Raises:
        DataError: The folder does not exist, has no images, or one of them cannot be read.
    """

    source_channels = 3

    def __init__(self, data_dir: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.folder = Path(data_dir).expanduser()

    def setup(self, stage: str | None = None) -> None:
        if stage not in ("predict", None):
            raise DataError("Pictures are for predict only: they have no targets")
        listing = Listing(self.folder, deep=False)
        listing.report()
        self.paths = listing.images
        if not self.paths:
            raise DataError(f"{self.folder} has no readable images: set data_dir to another folder")
        broken = []
        for path in self.paths:
            try:
                with opened(path):  # reads the header; the rest is checked in `_Files`
                    pass
            except UserError:
                broken.append(path.name)
        if broken:
            raise DataError(f"{self.folder} has images that cannot be read, {listed(broken)}: remove or replace them")

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(_Files(self.paths), batch_size=1)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, list[str]]:
        return from_uint8(batch[0]), list(batch[1])


class _Files(Dataset):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        try:
            return pil_to_tensor(open_image(self.paths[i])).to(torch.uint8), self.paths[i].name
        except ValueError as error:
            raise DataError(f"{self.paths[i]} cannot be read ({error}): remove or replace it") from error
