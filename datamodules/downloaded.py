"""Data sets that are downloaded: where their files are, and how they get there."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.base import ImageData, Split
from datamodules.files import DataError, download, find


class DownloadedImages(ImageData):
    """A data set in files of torchvision's layout; a subclass names these, and defines how to download and read them.

    Args:
        data_dir: Folder in torchvision's layout; default $LIT_GENERATIVE_DATA, else ``data``.
        download: Download the data set if none of its files is found.
        bundled: Fall back on the small subset that comes with this package (Fashion-MNIST only).
        images: Arguments of `ImageData`.

    Raises:
        DataError: Files are missing or damaged, or an option is out of range.
    """

    files: ClassVar[dict[Split, tuple[str, ...]]]  # names without .gz
    bundle: ClassVar[Path | None] = None  # folder of the bundled subset
    bundle_holds: ClassVar[str] = ""
    _uses_bundle = False

    def __init__(
        self, data_dir: str | None = None, *, download: bool = True, bundled: bool = False, **images: Any
    ) -> None:
        super().__init__(data_dir, **images)
        self.download, self.bundled = download, bundled

    @abstractmethod
    def folders(self) -> list[Path]:
        """Where to look for the files, in this order; downloads go to the first, which must be below `data_dir`."""

    @abstractmethod
    def fetch(self, root: Path) -> None:
        """Download all files below ``root``, in torchvision's layout, and verify their checksums."""

    @abstractmethod
    def read(self, paths: list[Path], split: Split) -> tuple[Tensor, Tensor]:
        """Read and check the files of a split: images uint8 ``(N, C, H, W)``, labels int64 ``(N,)``."""

    def stored(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.read(self._locate(split), split)

    def describe_test(self) -> str:
        return super().describe_test() + (", bundled subset" if self._uses_bundle else "")

    def prepare_data(self) -> None:
        """Download the data set if none of its files is found (Lightning: in one process per node)."""
        names, folders = self._names(), self.folders()
        if not self.download or any(find(folder, names) for folder in folders):
            return  # some files may be missing: `setup` raises an error that names them
        try:
            download(self.fetch, self.data_dir, folders[0], names)
        except DataError as error:
            if not (self.bundled and self.bundle):
                raise DataError(f"{self.name}: {error}. {self._remedy()}") from error

    def _names(self) -> list[str]:
        return [name for names in self.files.values() for name in names]

    def _remedy(self) -> str:
        no_bundle = f". There is no bundled subset of {self.name}" if self.bundled and not self.bundle else ""
        return (
            f"Put {', '.join(self._names())} (gzipped or not) into {self.folders()[0]}, or set data_dir or "
            f"$LIT_GENERATIVE_DATA to another folder in torchvision's layout, or use download=True online{no_bundle}"
        )

    def _locate(self, split: Split) -> list[Path]:
        for folder in self.folders():
            if found := find(folder, self._names()):
                for name in self.files[split]:
                    if name not in found:
                        raise DataError(
                            f"{folder / name} is missing, but other files of {self.name} are there and would not be "
                            f"overwritten by a download: add it, or move {folder} away"
                        )
                return [found[name] for name in self.files[split]]
        if not (self.bundled and self.bundle):
            raise DataError(f"{self.name} was not found. {self._remedy()}")
        if not self._uses_bundle:
            rank_zero_info(
                f"{self.name}: using only the bundled {self.bundle_holds}; for the whole data set "
                f"put its files into {self.folders()[0]} or use download=True online"
            )
            self._uses_bundle = True
        found = find(self.bundle, self._names())
        return [found[name] for name in self.files[split]]
