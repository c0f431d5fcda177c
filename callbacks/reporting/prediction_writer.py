"""Predictions as files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._logging import run_folder
from lit_generative.images import from_uint8, save_png
from lit_generative.utils.files import set_aside


class PredictionWriter(Callback):
    """Write the dictionaries that ``predict_step`` returns as ``predictions.npz``, one file per process.

    Dictionaries with a ``name`` hold images of any size, uint8 ``(B, C, H, W)``: each is written as a PNG of its name.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches: list[dict[str, Tensor]] = []
        self.written: dict[str, int] = {}
        self.folder = run_folder(trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        names = outputs.get("name")
        if names is None:
            self.batches.append({key: value.cpu() for key, value in outputs.items()})
            return
        for key, images in outputs.items():
            for name, image in zip(names, images, strict=True) if key != "name" and self.folder is not None else ():
                path = self.folder / key / f"{Path(name).stem}.png"
                if path.exists():  # of a file that differs only in its extension
                    path = path.with_name(f"{name}.png")
                save_png(from_uint8(image), path)
                self.written[key] = self.written.get(key, 0) + 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = self.folder
        for key, count in self.written.items():
            print(f"\n{count} images: {folder}/{key}")
        if folder is None or not self.batches:
            return
        arrays: Any = {key: torch.cat([b[key] for b in self.batches]).numpy() for key in self.batches[0]}
        rank = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"predictions{rank}.npz"
        set_aside(path)
        np.savez(path, **arrays)
        print(f"\npredictions      {path}: " + ", ".join(f"{key} {value.shape}" for key, value in arrays.items()))
