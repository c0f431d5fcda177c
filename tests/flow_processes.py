"""Run by test_distributed.py: a flow with both normalisations trained on some number of processes."""

import os

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_generative.models.realnvp import RealNVP
from train import leave_together


class Known(RealNVP):
    """Without noise, so that processes do not differ in it."""

    def log_weights(self, x, c=None):
        return self.log_density((x * 255 + 0.5) / 256)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)  # Adam makes steps of rounding errors


def main(processes, norm, path):
    x = torch.randint(256, (32, 1, 4, 4), generator=torch.Generator().manual_seed(1)) / 255
    mine = x[int(os.environ.get("LOCAL_RANK", 0)) :: processes]  # together the same eight images a step
    torch.manual_seed(0)
    model = Known((1, 4, 4), width=4, depth=1, norm=norm, alpha=0.05)
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=2,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    batches = DataLoader(TensorDataset(mine, torch.zeros(len(mine))), 8 // processes)
    trainer.fit(model, batches, batches)
    if trainer.is_global_zero:
        torch.save(model.state_dict(), path)
    leave_together()
