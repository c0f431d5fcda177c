"""A game of numbers instead of images; trained by test_adversarial.py also on some number of processes."""

import os

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lit_generative.models
from callbacks import EMA
from lit_generative.families.adversarial import Adversarial
from lit_generative.models.cyclegan import CycleGAN
from lit_generative.models.pix2pix import Pix2Pix
from train import leave_together


class Game(Adversarial):
    """The generator is deterministic: its noise is the batch's second part."""

    image_shape = (1, 1, 1)

    def __init__(self, n_critic=1, accumulate_grad_batches=1, clip=0.0, decay=False):
        super().__init__(n_critic, accumulate_grad_batches, clip)
        self.save_hyperparameters()
        self.generator = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.discriminator = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.decay = decay

    def take_batch(self, batch, first):
        return batch  # numbers, and no images

    def generate(self, batch):
        return self.generator(batch[1])

    def discriminator_loss(self, batch, fake):
        real, fake = self.discriminator(batch[0]), self.discriminator(fake)
        return {"loss_discriminator": (fake - real + 0.1 * (real**2 + fake**2)).mean()}

    def generator_loss(self, batch, fake):
        return {"loss_generator": -self.discriminator(fake).mean()}

    def configure_optimizers(self):
        optimizers = [torch.optim.SGD(n.parameters(), 0.1) for n in (self.generator, self.discriminator)]
        if not self.decay:
            return optimizers
        halve = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in optimizers]
        return optimizers, [{"scheduler": halve[0], "interval": "step"}, {"scheduler": halve[1], "interval": "epoch"}]


def main(processes, path, name="Game"):
    x = torch.randn(32, 1, generator=torch.Generator().manual_seed(1))
    mine = slice(int(os.environ.get("LOCAL_RANK", 0)), None, processes)  # together the same eight numbers a step
    batches = DataLoader(TensorDataset(x[mine], x.flip(0)[mine]), 8 // processes)
    torch.manual_seed(0)
    model, callbacks = Game(n_critic=2), []
    if name in ("Pix2Pix", "CycleGAN"):  # which in these forms draw nothing
        pairs = torch.rand(2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        batches = DataLoader(TensorDataset(*pairs[:, mine]), 4 // processes)
        small = {"image_shape": (3, 16, 16), "width": 4, "patch": 16, "lr_decay_start": 0.0}
        model = CycleGAN(**small, blocks=1, pool=0)
        if name == "Pix2Pix":
            model = Pix2Pix(**small, num_downs=3, norm="instance", dropout=0.0)
    elif name != "Game":  # a GAN of that name instead, on images
        file, options = name.lower().removesuffix("gp"), {"width": 4, "latent": 4, "n_critic": 2}
        networks = ["generator"]
        if name == "FactorVAE":
            file, options, networks = "factor_vae", {"hidden": (4,), "units": 4, "layers": 1}, ["encoder", "decoder"]
        model = getattr(getattr(lit_generative.models, file), name)(accumulate_grad_batches=2, **options)
        batches, callbacks = DataLoader(TensorDataset(torch.rand(16, 1, 28, 28), torch.zeros(16)), 4), [EMA(networks)]
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_find_unused_parameters_true" if processes > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=1 if callbacks else 3,
        callbacks=callbacks,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, batches)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    spread = float((trainer.strategy.all_gather(weights).view(processes, -1) - weights).abs().max())
    if trainer.is_global_zero:
        torch.save({"weights": model.state_dict(), "global_step": trainer.global_step, "spread": spread}, path)
    leave_together()
