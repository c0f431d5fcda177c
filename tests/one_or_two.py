"""Run by test_distributed.py, also under torchrun: models trained on the same batches and noise; curves as JSON."""

import json
import os

import torch
from lightning.pytorch import Callback, Trainer
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from lit_generative.models.beta_vae import BetaVAE
from lit_generative.models.ddpm import DDPM
from lit_generative.models.iwae import IWAE
from lit_generative.models.latent_diffusion import LatentDiffusion
from lit_generative.models.latent_flow import LatentFlow
from lit_generative.models.realnvp import RealNVP
from lit_generative.models.vae import VAE
from train import leave_together

WORLD, RANK = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
WHOLE = 22  # images a step over all processes, a number that is no model's size
BATCH = WHOLE // WORLD
NORMAL = {torch.randn, torch.randn_like, torch.Tensor.normal_}  # which is of mean 0 and deviation 1 wherever it is used
DRAWS = {torch.rand, torch.rand_like, torch.randint} | NORMAL


class SharedNoise(TorchFunctionMode):
    """Every draw for a batch is drawn for all processes' images; each process takes that of its own."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        x = func(*args, **(kwargs or {}))
        if func not in DRAWS or BATCH not in x.shape:
            return x
        dim = x.shape.index(BATCH)
        shape = [*x.shape[:dim], WHOLE, *x.shape[dim + 1 :]]
        noise = torch.Generator().manual_seed(self.count)
        self.count += 1
        if func in NORMAL:
            drawn = torch.randn(shape, generator=noise)
        elif func is torch.randint:
            numbers = [a for a in args if isinstance(a, int)]
            low, high = numbers if len(numbers) == 2 else (0, numbers[0])
            drawn = torch.randint(low, high, shape, generator=noise)
        else:
            drawn = torch.rand(shape, generator=noise)
        return x.copy_(drawn.index_select(dim, torch.arange(RANK, WHOLE, WORLD)))


class Curve(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")))


def models():
    vae = {"class_path": f"{VAE.__module__}.VAE", "init_args": {"hidden": [8], "latent": 3}}
    small = {"hidden": (8,), "latent": 3}
    return [
        VAE(**small), BetaVAE(**small), IWAE(**small, likelihood="logistic", k=4),
        RealNVP(stack="dense", couplings=2, width=8, norm="act"), RealNVP(width=4, scales=1, norm="none"),
        LatentFlow(hidden=(8,), latent=4, couplings=2, width=8), DDPM(channels=(8, 8), groups=4, steps=20),
        LatentDiffusion(vae, width=8, depth=1, steps=20),
    ]  # fmt: skip


def main():
    images = torch.randint(256, (3 * WHOLE, 1, 28, 28), generator=torch.Generator().manual_seed(1)) / 255
    mine = images[RANK::WORLD]
    curves = {}
    torch.manual_seed(0)
    for i, model in enumerate(models()):
        curve, shared = Curve(), SharedNoise()
        shared.count = 0
        strategy = "auto" if WORLD == 1 else "ddp_find_unused_parameters_true"
        options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        fit = Trainer(accelerator="cpu", devices=WORLD, strategy=strategy, use_distributed_sampler=False, max_epochs=2,
                      limit_val_batches=0, callbacks=[curve], logger=False, **options)  # fmt: skip
        with shared:
            fit.fit(model, DataLoader(TensorDataset(mine, torch.zeros(len(mine))), BATCH))
        curves[f"{i} {type(model).__name__}"] = curve.losses
    if RANK == 0:
        print("curves: " + json.dumps(curves))


if __name__ == "__main__":
    main()
    leave_together()
