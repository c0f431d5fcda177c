"""Models that have one protocol and nothing else, and a small extractor."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_generative.images import from_uint8


class Stub(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.net(torch.rand(4, 1)).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        self.log_dict({"test/nll": 3.25, "test/nll_stderr": 0.5})

    def predict_step(self, batch, batch_idx):
        return {"label": batch[1]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Sampler(Stub):
    def sample(self, n, c=None):
        return torch.rand(n, 1, 28, 28)


class Reconstructor(Stub):
    def reconstruct(self, x, c=None):
        return 1 - x


class Density(Stub):
    """Each pixel is a level of 256, more likely the darker: p(k) proportional to exp(-k / 50)."""

    def log_prob(self, x, c=None):
        k = torch.arange(256, dtype=torch.float64)
        log_p = (-k / 50).log_softmax(0).float()
        return log_p[(x * 255).round().long()].flatten(1).sum(1)


class Random(Density):
    """A bound that draws."""

    def log_prob(self, x, c=None):
        return super().log_prob(x) - torch.rand(len(x))


class Copier(Sampler):
    """Draws from the images themselves."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def sample(self, n, c=None):
        return from_uint8(self.images[torch.randint(len(self.images), (n,))])


class Quarters(nn.Module):
    """Four features: the mean levels of an image's quarters."""

    name = "quarters"

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x.float().mean(1, keepdim=True) / 255, 2).flatten(1)


def trainer(folder, **kwargs):
    defaults = {"max_epochs": 2, "enable_checkpointing": False, "logger": CSVLogger(folder, "run", 0)}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{**defaults, **quiet, **kwargs})
