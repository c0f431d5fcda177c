"""How close translations are to their targets, in pixels and in labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from callbacks.base import PerImageCallback, datamodule_of
from lit_generative.errors import UserError
from lit_generative.images import from_uint8, to_uint8
from lit_generative.metrics.segmentation import confusion, label_scores, nearest_colour
from lit_generative.protocols import HasLabelMaps, Translates
from lit_generative.utils.precision import exact

ALEXNET = "alexnet-owt-7be5be79.pth"  # as torchvision names it
OF_LABELS = ("pixel_accuracy", "class_accuracy", "class_iou")


class TranslationScores(PerImageCallback):
    """Log L1, PSNR and SSIM of translations, rounded to 8 bits, and accuracies and IoU of their labels.

    If the targets are labels in colour, the class of a pixel is that of the nearest colour. If the sources are labels,
    a ``segmentation`` network predicts those of translations, and of real targets: its scores of these, ``real_...``,
    are an upper limit.

    Args:
        segmentation: A module from images ``(B, 3, H, W)`` in [0, 1] to logits ``(B, K, H, W)`` of the data's classes.
        lpips: Log LPIPS (Zhang et al., 2018) of AlexNet too, whose weights are downloaded once; None: if they were.
        evaluation: Arguments of `EvaluationCallback`.
    """

    protocol = Translates
    reported: ClassVar = {"l1": ".4f", "psnr": ".2f", "ssim": ".3f", **dict.fromkeys(OF_LABELS, ".3f")}

    def __init__(self, segmentation: nn.Module | None = None, lpips: bool | None = None, **evaluation: Any) -> None:
        super().__init__(**evaluation)
        self.segmentation, self.lpips = segmentation, lpips
        self._perceptual: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._data = datamodule_of(trainer)
        if not getattr(self._data, "paired", True):
            raise UserError(
                "TranslationScores compares translations with their targets, and images of "
                f"{type(self._data).__name__} are not pairs: remove it, or test on pairs (--data PairedFolder)"
            )
        self._labels = self._data.label_side if isinstance(self._data, HasLabelMaps) else ""
        if self.segmentation is not None:
            if self._labels != "source":
                raise UserError(
                    "TranslationScores: segmentation needs data whose source images are labels, but those of "
                    f"{type(self._data).__name__} are not: remove it"
                )
            self.segmentation.eval().requires_grad_(False)
            shape, classes = self._data.image_shape, len(self._data.palette)
            expected, given = (1, classes, *shape[1:]), tuple(self._logits(torch.zeros(1, *shape)).shape)
            if given != expected:
                raise UserError(
                    f"TranslationScores: segmentation must give logits {expected} for an image, got {given} "
                    f"from {type(self.segmentation).__name__}"
                )
        if self.lpips is None:
            self.lpips = (Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET).is_file()
        if self.lpips and self._perceptual is None:
            try:
                from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

                self._perceptual = LearnedPerceptualImagePatchSimilarity("alex", reduction="none", normalize=True)
            except (OSError, RuntimeError, ModuleNotFoundError) as error:
                rank_zero_info(f"no LPIPS: its weights cannot be loaded ({error})")
        self._of_images = ("l1", "psnr", "ssim", *["lpips"] * (self._perceptual is not None))
        judged = ("",) if self._labels == "target" else ("", "real_") if self.segmentation is not None else ()
        self.logged = (*self._of_images, *(f"{of}{name}" for of in judged for name in OF_LABELS))

    def measure(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
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
        """Confusion matrices of the translations, and with a segmentation network of the real targets."""
        if self._labels == "target":
            found = [nearest_colour(made, self._data.palette)]
        elif self.segmentation is not None:
            found = [self._logits(images).argmax(1) for images in (made, x)]
        else:
            return []
        truth = self._data.truth(self._split, self.indices)
        return [confusion(truth, labels, len(self._data.palette)) for labels in found]

    def _logits(self, images: Tensor) -> Tensor:
        assert self.segmentation is not None
        with torch.no_grad():
            found = self.segmentation.to(images.device)(images)
        return found["out"] if isinstance(found, Mapping) else found  # of torchvision

    def summarize(self, trainer: Trainer, pl_module: Any, stage: str, rows: Tensor) -> None:
        metrics = dict(zip(self._of_images, rows.mean(0).tolist(), strict=False))
        rest = rows[:, len(self._of_images) :].sum(0)
        if len(rest):
            classes = len(self._data.palette)
            for prefix, table in zip(("", "real_"), rest.view(-1, classes, classes), strict=False):
                metrics |= {f"{prefix}{name}": value for name, value in label_scores(table).items()}
        self.log_numbers(pl_module, stage, metrics)
        self._images = len(rows)

    def describe_test(self) -> str:
        """The protocol of the numbers."""
        text = (
            f"{self._images:,} pairs, rounded to 8 bits; l1: mean absolute difference in [0, 1]; psnr (dB) and ssim: "
            f"means over images; noise: seed {self.seed}, of {self.images_per_draw} images at a time"
        )
        if self._labels == "target":
            text += "; labels: the class of the nearest colour"
        elif self.segmentation is not None:
            text += f"; labels: {type(self.segmentation).__name__}, real_: of the real targets"
        return text
