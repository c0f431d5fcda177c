"""Where the files of a data set lie, and how they come there."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.files import DataError, download, find

Split = Literal["train", "test"]


class StoredFiles(LightningDataModule, ABC):
    """The part of `ImageData` that finds, fetches and reads files; it has the options ``download`` and ``bundled``."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]: ...  # (C, H, W) as stored

    name: str  # the class's
    download: bool
    bundled: bool
    files: ClassVar[dict[Split, tuple[str, ...]]]  # names without .gz
    bundle: ClassVar[Path | None] = None  # folder of the bundled subset
    bundle_holds: ClassVar[str] = ""
    _told_of_bundle = False

    @property
    def data_dir(self) -> Path:
        """Resolved when used: the environment of another machine is not carried in a checkpoint."""
        return Path(self.hparams["data_dir"] or os.environ.get("LIT_GENERATIVE_DATA") or "data").expanduser()

    def folders(self) -> list[Path]:
        """Where the files may lie, best first; a download goes to the first, below `data_dir`."""
        raise NotImplementedError

    def fetch(self, root: Path) -> None:
        """Download everything below ``root``, in torchvision's layout, and check its checksums."""
        raise NotImplementedError

    def read(self, paths: list[Path], split: Split) -> tuple[Tensor, Tensor]:
        """Read and check ``files[split]``: images uint8 ``(N, C, H, W)``, labels int64 ``(N,)``."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Download the data set if no file of it is there (Lightning: in one process per node)."""
        names, folders = self._names(), self.folders()
        if not self.download or any(find(folder, names) for folder in folders):
            return  # incomplete files are the user's: `setup` names what is missing
        try:
            download(self.fetch, self.data_dir, folders[0], names)
        except DataError as error:
            if not (self.bundled and self.bundle):
                raise DataError(f"{self.name}: {error}. {self._remedy()}") from error

    def _names(self) -> list[str]:
        return [name for names in self.files.values() for name in names]

    def _remedy(self) -> str:
        lacking = f". There is no bundled subset of {self.name}" if self.bundled and not self.bundle else ""
        return (
            f"Put {', '.join(self._names())} (gzipped or not) into {self.folders()[0]}, or name another folder in "
            f"torchvision's layout as data_dir or in $LIT_GENERATIVE_DATA, or use download=True with a network{lacking}"
        )

    def _locate(self, split: Split) -> list[Path]:
        for folder in self.folders():
            if found := find(folder, self._names()):
                for name in self.files[split]:
                    if name not in found:
                        raise DataError(
                            f"{folder / name} is missing, though other files of {self.name} are there, "
                            f"which a download leaves alone: add it, or move {folder} away"
                        )
                return [found[name] for name in self.files[split]]
        if not (self.bundled and self.bundle):
            raise DataError(f"{self.name} was not found. {self._remedy()}")
        if not self._told_of_bundle:
            rank_zero_info(
                f"{self.name}: using only the bundled {self.bundle_holds}; for the whole data set "
                f"put its files into {self.folders()[0]} or use download=True with a network"
            )
            self._told_of_bundle = True
        found = find(self.bundle, self._names())
        return [found[name] for name in self.files[split]]
