"""How near translations come to their targets, pixel by pixel and label by label."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from callbacks.base import PerImageCallback
from lit_generative.errors import UserError
from lit_generative.images import from_uint8, to_uint8
from lit_generative.metrics.segmentation import confusion, label_scores, nearest_colour
from lit_generative.protocols import Translates, require
from lit_generative.utils.precision import exact

ALEXNET = "alexnet-owt-7be5be79.pth"  # as torchvision names it
OF_LABELS = ("pixel_accuracy", "class_accuracy", "class_iou")


class TranslationScores(PerImageCallback):
    """Log L1, PSNR and SSIM of translations, rounded to 8 bits, and how much of the labels they show.

    Where the targets are labels in colour, every pixel counts as the class of the nearest colour. Where the sources are
    labels, a ``segmentation`` network looks at the translations, and at the real targets too: its scores of these,
    ``real_...``, are the most that can be had.

    Args:
        segmentation: A module of images ``(B, 3, H, W)`` in [0, 1] to logits ``(B, K, H, W)`` of the data's classes.
        lpips: Also LPIPS (Zhang et al., 2018) of AlexNet, whose weights are downloaded once; None: where they are at
            hand.
        every_n_epochs: In validation; 0: in test only.
        seed: Of the noise.
    """

    def __init__(
        self, segmentation: nn.Module | None = None, lpips: bool | None = None, every_n_epochs: int = 1, seed: int = 0
    ) -> None:
        if every_n_epochs < 0:
            raise UserError(f"TranslationScores: every_n_epochs must be >= 0, got {every_n_epochs}")
        self.segmentation, self.lpips = segmentation, lpips
        self.every_n_epochs, self.seed = every_n_epochs, seed
        self._perceptual: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(pl_module, Translates, self)
        self._data: Any = getattr(trainer, "datamodule", None)
        self._labels = getattr(self._data, "label_side", None)  # which side of the pairs are labels, if any
        if self.segmentation is not None:
            if self._labels != "source":
                raise UserError(
                    "TranslationScores: a segmentation network looks at translations of labels whose classes are "
                    f"known, and the source images of {type(self._data).__name__} are none: leave it out"
                )
            self.segmentation.eval().requires_grad_(False)
            data: Any = self._data
            shape, classes = data.image_shape, len(data.palette)
            given = tuple(self._logits(torch.zeros(1, *shape)).shape)
            if given != (1, classes, *shape[1:]):
                raise UserError(
                    f"TranslationScores: {type(self.segmentation).__name__} gives {given} for an image {shape}, not "
                    f"logits of {classes} classes for each of its pixels"
                )
        if self.lpips is None:
            self.lpips = (Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET).is_file()
        if self.lpips and self._perceptual is None:
            try:
                from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

                self._perceptual = LearnedPerceptualImagePatchSimilarity("alex", reduction="none", normalize=True)
            except (OSError, RuntimeError, ModuleNotFoundError) as error:
                rank_zero_info(f"no LPIPS: its weights are not at hand ({error})")
        self._of_images = ("l1", "psnr", "ssim", *["lpips"] * (self._perceptual is not None))
        judged = ("",) if self._labels == "target" else ("", "real_") if self.segmentation is not None else ()
        self.logged = (*self._of_images, *(f"{of}{name}" for of in judged for name in OF_LABELS))

    def keep(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        made, x = from_uint8(to_uint8(model.translate(c))), from_uint8(to_uint8(x))  # half precision rounds levels
        error = (made - x).flatten(1)
        psnr = -10 * error.square().mean(1).clamp(min=1e-10).log10()
        ssim = structural_similarity_index_measure(made, x, data_range=1.0, reduction="none")
        columns = [error.abs().mean(1), psnr, torch.as_tensor(ssim).view(-1)]
        if self._perceptual is not None:
            net = self._perceptual.net.to(x.device)
            columns.append(net(made, x, normalize=True).view(-1))
        maps = self._maps(made, x)
        return torch.cat([exact(torch.stack(columns, 1)), *(table.flatten(1) for table in maps)], 1)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self._split = "test" if trainer.testing else "val"
        super().evaluate(trainer, pl_module, batch)

    def _maps(self, made: Tensor, x: Tensor) -> list[Tensor]:
        """Confusion of labels in the translations, and in the real targets where a network looks at them."""
        if self._labels == "target":
            found = [nearest_colour(made, self._data.palette)]
        elif self.segmentation is not None:
            found = [self._logits(images).argmax(1) for images in (made, x)]
        else:
            return []
        truth = self._data.truth(self._split, self.numbers)
        return [confusion(truth, labels, len(self._data.palette)) for labels in found]

    def _logits(self, images: Tensor) -> Tensor:
        assert self.segmentation is not None
        with torch.no_grad():
            found = self.segmentation.to(images.device)(images)
        return found["out"] if isinstance(found, Mapping) else found  # torchvision's give them among others

    def finish(self, trainer: Trainer, pl_module: Any, stage: str, rows: Tensor) -> None:
        metrics = dict(zip(self._of_images, rows.mean(0).tolist(), strict=False))
        rest = rows[:, len(self._of_images) :].sum(0)
        if len(rest):
            classes = len(self._data.palette)
            for prefix, table in zip(("", "real_"), rest.view(-1, classes, classes), strict=False):
                metrics |= {f"{prefix}{name}": value for name, value in label_scores(table).items()}
        # the same everywhere: sync_dist only spares Lightning's warning
        pl_module.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, sync_dist=True)
        self._images = len(rows)

    def describe_test(self) -> str:
        """The protocol of the numbers."""
        text = (
            f"{self._images:,} pairs, rounded to 8 bits; l1: mean absolute difference in [0, 1]; psnr (dB) and ssim: "
            f"means over images; noise: seed {self.seed}, of {self.drawn} images at a time"
        )
        if self._labels == "target":
            text += "; labels: the nearest of the classes' colours"
        elif self.segmentation is not None:
            text += f"; labels: {type(self.segmentation).__name__}, real_: of the real targets"
        return text
