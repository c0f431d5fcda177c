"""Run by test_distributed.py: a test with every callback on some number of processes; the numbers as JSON."""

import json

import torch
from lightning.pytorch import Trainer
from stubs import Quarters, Random
from torch.distributions import Normal

from callbacks import FID, OODScores, PosteriorStatistics, ReconstructionFID, ReconstructionGrid, Report, SampleGrid
from datamodules import MNIST, FashionMNIST
from lit_generative.models.ddpm import DDPM
from lit_generative.models.vae import VAE
from train import leave_together


class Model(Random):
    def sample(self, n, c=None):
        return torch.rand(n, 1, 28, 28)

    def reconstruct(self, x, c=None):
        return 1 - x

    def q(self, x):
        mu = 4 * Quarters()(x)
        return Normal(mu, torch.full_like(mu, 0.3))


def main(processes, data_dir, folder):
    callbacks = [
        SampleGrid(n=4),
        ReconstructionGrid(n=4),
        FID(Quarters(), num_samples=90, batch_size=16, cache_dir=f"{folder}/cache"),
        ReconstructionFID(Quarters(), cache_dir=f"{folder}/cache"),
        PosteriorStatistics(num_images=30),
        OODScores([MNIST()], batch_size=16, resamples=20, synthetic=False),
        Report(),
    ]
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        default_root_dir=folder,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        max_epochs=1,
        enable_checkpointing=False,
    )
    data = FashionMNIST(data_dir=data_dir, batch_size=16, val_size=32)
    found = trainer.test(Model(), datamodule=data, verbose=False)[0]
    vae = VAE(hidden=(8,), latent=2)
    trainer.fit(vae, datamodule=data)  # validation with the same callbacks
    found |= {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/fid")}
    torch.manual_seed(0)
    diffusion = DDPM(channels=(8, 8), groups=4, steps=20, sampler="ancestral", sampling_steps=5)
    for p in diffusion.denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    trainer.callbacks[:] = [c for c in trainer.callbacks if type(c) is FID]
    sampled = trainer.test(diffusion, datamodule=data, verbose=False)[0]
    found |= {f"ddpm {name}": v for name, v in sampled.items() if "quarters" in name}
    if trainer.is_global_zero:
        print("numbers: " + json.dumps(found))
    leave_together()
