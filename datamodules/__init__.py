"""Data sets: LightningDataModules, one small file each, that hold their images in memory."""

from datamodules.base import ImageData
from datamodules.cifar10 import CIFAR10
from datamodules.cityscapes import Cityscapes
from datamodules.downloaded import DownloadedImages
from datamodules.files import DataError
from datamodules.image_folder import ImageFolder
from datamodules.mnist import KMNIST, MNIST, FashionMNIST
from datamodules.paired_folder import PairedFolder
from datamodules.pictures import Pictures
from datamodules.sprites import Sprites
from datamodules.unpaired_folders import UnpairedFolders

__all__ = [
    "CIFAR10",
    "KMNIST",
    "MNIST",
    "Cityscapes",
    "DataError",
    "DownloadedImages",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "PairedFolder",
    "Pictures",
    "Sprites",
    "UnpairedFolders",
]
