"""What ``predict`` computes, kept as arrays."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._logging import run_folder


class PredictionWriter(Callback):
    """Write the dictionaries that ``predict_step`` returns as ``predictions.npz``, one file per process."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batches.append({key: value.cpu() for key, value in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not self.batches:
            return
        arrays: Any = {key: torch.cat([b[key] for b in self.batches]).numpy() for key in self.batches[0]}
        rank = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"predictions{rank}.npz"
        np.savez(path, **arrays)
        print(f"\npredictions      {path}: " + ", ".join(f"{key} {value.shape}" for key, value in arrays.items()))
