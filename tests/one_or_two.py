"""Run by test_distributed.py on one and two processes: models trained on the same batches and noise; curves as JSON."""

import json
import os

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from lit_generative.flows.bijections import moments, per_channel
from lit_generative.models.beta_vae import BetaVAE
from lit_generative.models.dcgan import DCGAN
from lit_generative.models.ddpm import DDPM
from lit_generative.models.iwae import IWAE
from lit_generative.models.latent_diffusion import LatentDiffusion
from lit_generative.models.latent_flow import LatentFlow
from lit_generative.models.realnvp import RealNVP
from lit_generative.models.vae import VAE
from lit_generative.models.wgan import WGAN, WGANGP
from train import leave_together

WHOLE = 22  # images a step over all processes, a number that is no model's size
NORMAL = {torch.randn, torch.randn_like, torch.Tensor.normal_}  # which is of mean 0 and deviation 1 wherever it is used
DRAWS = {torch.rand, torch.rand_like, torch.randint} | NORMAL


class SharedNoise(TorchFunctionMode):
    """Every draw for a batch is drawn for all processes' images; each process takes that of its own."""

    def __init__(self, processes, rank):
        super().__init__()
        self.batch, self.mine, self.count = WHOLE // processes, torch.arange(rank, WHOLE, processes), 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        x = func(*args, **(kwargs or {}))
        if func not in DRAWS or self.batch not in x.shape:
            return x
        dim = x.shape.index(self.batch)
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
        return x.copy_(drawn.index_select(dim, self.mine))


class Synchronised(nn.BatchNorm2d):
    """What ``sync_batchnorm`` makes of batch norm; torch's own version of it wants a GPU."""

    def forward(self, x):
        mean, variance = moments(x)
        z = (x - per_channel(mean, x)) / per_channel((variance + self.eps).sqrt(), x)
        return z * per_channel(self.weight, x) + per_channel(self.bias, x)


def synchronised(model):
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, Synchronised(child.num_features, child.eps))
    return model


class Curves(Logger):
    """Every value of every line."""

    name = version = None

    def __init__(self):
        super().__init__()
        self.losses = {}

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            if name.startswith("train/") and name != "train/images_per_second":
                self.losses.setdefault(name, []).append(value)


def models():
    vae = {"class_path": f"{VAE.__module__}.VAE", "init_args": {"hidden": [8], "latent": 3}}
    small = {"hidden": (8,), "latent": 3}
    return [
        VAE(**small), BetaVAE(**small), IWAE(**small, likelihood="logistic", k=4),
        RealNVP(stack="fully_connected", couplings=2, width=8, norm="act"), RealNVP(width=4, scales=1, norm="none"),
        LatentFlow(hidden=(8,), latent=4, couplings=2, width=8), DDPM(channels=(8, 8), groups=4, steps=20),
        LatentDiffusion(vae, width=8, depth=1, steps=20),
        DCGAN(width=4, latent=4), WGAN(width=4, latent=4, n_critic=2), WGANGP(width=4, latent=4, n_critic=2),
    ]  # fmt: skip


def main(processes):
    rank = int(os.environ.get("RANK", 0))
    images = torch.randint(256, (3 * WHOLE, 1, 28, 28), generator=torch.Generator().manual_seed(1)) / 255
    mine = images[rank::processes]
    curves = {}
    torch.manual_seed(0)
    for i, model in enumerate(models()):
        found, shared = Curves(), SharedNoise(processes, rank)
        strategy = "auto" if processes == 1 else "ddp_find_unused_parameters_true"
        options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        fit = Trainer(accelerator="cpu", devices=processes, strategy=strategy, use_distributed_sampler=False,
                      max_epochs=2, limit_val_batches=0, logger=found, log_every_n_steps=1, **options)  # fmt: skip
        with shared:
            fit.fit(synchronised(model), DataLoader(TensorDataset(mine, torch.zeros(len(mine))), shared.batch))
        curves[f"{i} {type(model).__name__}"] = found.losses
    if rank == 0:
        print("curves: " + json.dumps(curves))
    leave_together()
