"""A model, a sampler, a metric and a data set are each one file, whose class the command line takes by its name."""

import json

import pytest
import torch
from torch.testing import assert_close

import train
from datamodules import ImageData
from lit_generative.checkpoints.load import data_config, find_class, import_classes, load_model, read_checkpoint

STRAIGHT_LINES = '''
"""Flow matching (Lipman et al., 2023): x_t = (1 - t) x_0 + t eps, t in [0, 1]; the network learns eps - x_0."""

from typing import Any

import torch
from torch import nn

from lit_generative.diffusion.samplers import ddim
from lit_generative.diffusion.schedules import Schedule
from lit_generative.families.diffusion_model import DiffusionModel
from lit_generative.images import from_symmetric, to_symmetric


class Line(Schedule):
    def forward(self, t):
        return 1 - t, t

    def at(self, t, like):
        t = torch.as_tensor(t).to(like).view(-1, *[1] * (like.ndim - 1))
        return 1 - t, t

    def quantile(self, u):
        return u

    def timesteps(self, n, power=1.0, start=1.0):
        return (start * torch.linspace(1, 0, n + 1)[:-1] ** power).tolist()


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(785, width), nn.SiLU(), nn.Linear(width, 784))

    def forward(self, x, t):
        return self.layers(torch.cat([x.flatten(1), t[:, None]], 1)).view_as(x)


class StraightLines(DiffusionModel):
    """Flow matching of 28x28 pixels.

    Args:
        width: Units of the hidden layer.
        sampler: As of the parent.
        diffusion: Arguments of `DiffusionModel`.
    """

    deterministic_sampler = "euler"

    def __init__(self, width: int = 8, sampler: str = "euler", **diffusion: Any) -> None:
        super().__init__(sampler=sampler, **diffusion)
        self.image_shape = self.data_shape = (1, 28, 28)
        self.schedule, self.denoiser = Line(), Network(width)

    @property
    def samplers(self):
        return {"euler": (ddim, Line.timesteps)}

    def to_data(self, x):
        return to_symmetric(x)

    def to_images(self, x_0):
        return from_symmetric(x_0).clamp(0, 1)

    def predict(self, x_t, t, c=None):
        return self.denoiser(x_t, t)

    def estimate(self, x_t, out, t):
        return x_t - t.view(-1, 1, 1, 1) * out

    def losses_at(self, x, t, c=None):
        x_0 = self.to_data(x)
        eps = torch.randn_like(x_0)
        out = self.predict(self.schedule.diffuse(x_0, t, eps), t)
        return (eps - x_0 - out).square().flatten(1).mean(1)
'''

HEUN = '''
"""A DDPM with a sampler of the second order."""

from itertools import pairwise

from lit_generative.diffusion.schedules import DiscreteSchedule
from lit_generative.models import DDPM


def heun(denoise, x_T, schedule, times):
    """The probability flow by Heun's method, in the variable x_t / alpha_t and the time sigma_t / alpha_t."""
    x = x_T
    for t, s in pairwise([*times, 0]):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        step = sigma_s / alpha_s - sigma_t / alpha_t
        slope = (x - alpha_t * denoise(x, t)) / sigma_t
        ahead = alpha_s * (x / alpha_t + step * slope)
        if s > 0:
            slope = (slope + (ahead - alpha_s * denoise(ahead, s)) / sigma_s) / 2
        x = alpha_s * (x / alpha_t + step * slope)
    return x


class HeunDDPM(DDPM):
    """A `DDPM` that can also be sampled by ``heun``."""

    @property
    def samplers(self):
        return {**super().samplers, "heun": (heun, DiscreteSchedule.timesteps)}
'''


BRIGHTNESS = '''
"""Whether samples are as bright as images."""

from lit_generative.metrics.two_sample import TwoSampleMetric


class FeatureShift(TwoSampleMetric):
    """The distance between the means of the features.

    Args:
        power: Power to which it is taken.
    """

    reported = {"shift_{}": ".3f"}
    in_validation = True

    def __init__(self, power: int = 1) -> None:
        self.power = power

    def measure(self, fake, real, x, y):
        return {"shift_{}": float((fake.mean - real.mean).norm() ** self.power)}

    def describe(self, m, n):
        return f"shift: distance between means, to the power of {self.power}"
'''


@pytest.fixture
def fit(data_dir, tmp_path, monkeypatch):
    """Train the class of a file for an epoch from the command line, and load its checkpoint."""
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(file, text, name, *args):
        (tmp_path / f"{file}.py").write_text(text)
        quiet = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
        train.main(
            ["fit", f"--model={file}.{name}", "--data=FashionMNIST", "--data.batch_size=16", "--name=run", *args,
             "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", *quiet]
        )  # fmt: skip
        import_classes([f"{file}.{name}"])
        return load_model(tmp_path / "runs" / "run" / "version_0" / "checkpoints" / "last.ckpt").eval()

    return run


def test_a_model_of_continuous_time_is_one_file(fit, tmp_path):
    model = fit("straight_lines", STRAIGHT_LINES, "StraightLines", "--model.width=4", "--model.sampling_steps=3")
    assert model.hparams["width"] == 4 and model.hparams["sampling_steps"] == 3
    torch.manual_seed(0)
    x = model.sample(2)
    torch.manual_seed(0)
    x_t = model.noise(2, 1, 28, 28)
    with torch.no_grad():
        for t in (1.0, 2 / 3, 1 / 3):  # Euler's method
            x_t = x_t - model.denoiser(x_t, torch.full((2,), t)) / 3
    assert_close(x, (x_t.clamp(-1, 1) + 1) / 2, atol=1e-5, rtol=0)
    assert model.interpolate(2, 3).shape == (6, 1, 28, 28) and model.ood_scores(x)["reconstruction"].shape == (2, 5)
    logged = (tmp_path / "runs" / "run" / "version_0" / "metrics.csv").read_text()
    assert "val/loss" in logged and "train/loss" in logged


def test_a_sampler_is_one_file(fit):
    small = ("--model.channels=[8,8]", "--model.groups=4", "--model.steps=200")
    model = fit("heun_ddpm", HEUN, "HeunDDPM", *small, "--model.sampler=heun", "--model.sampling_steps=4")
    x_T = torch.randn(2, 1, 28, 28)
    # both follow the probability flow, to which many small steps come near
    exact = model.generate(x_T, sampler="ddim", steps=200)
    heun, ddim = ((model.generate(x_T, sampler=name, steps=20) - exact).abs().mean() for name in ("heun", "ddim"))
    assert 0 < heun < ddim / 2
    assert not torch.equal(model.sample(2), model.sample(2))
    with pytest.raises(ValueError, match="there is no sampler euler: choose from ancestral, ddim, dpm_solver, heun"):
        model.sample(1, sampler="euler")


def test_a_metric_is_one_file(fit, tmp_path):
    """Logged in validation and test, in the protocol and the row of results, and able to choose checkpoints."""
    (tmp_path / "brightness.py").write_text(BRIGHTNESS)
    further = {"class_path": "brightness.FeatureShift", "init_args": {"power": 2}}
    options = {"num_samples": 200, "neighbours": 0, "cache_dir": str(tmp_path / "cache"), "metrics": [further]}
    callbacks = json.dumps([{"class_path": "FID", "init_args": options}])
    fit("heun_ddpm", HEUN, "HeunDDPM", "--model.channels=[8,8]", "--model.groups=4", "--model.steps=20",
        "--model.sampling_steps=2", "--checkpoint.monitor=val/shift_lenet_fashion_mnist",
        f"--trainer.callbacks={callbacks}")  # fmt: skip
    run = tmp_path / "runs" / "run" / "version_0"
    assert "val/shift_lenet_fashion_mnist" in (run / "metrics.csv").read_text().splitlines()[0]
    train.main(["test", f"--ckpt_path={run}/checkpoints/best.ckpt", f"--trainer.callbacks={callbacks}"])
    results = json.loads((run / "test" / "version_0" / "results.json").read_text())
    shift = results["metrics"]["shift_lenet_fashion_mnist"]
    assert shift > 0 and results["row"]["shift_lenet_fashion_mnist"] == f"{shift:.3f}"
    assert "shift: distance between means, to the power of 2" in results["protocol"]["FID"]


STRIPES = '''
"""Stripes: images whose class is the direction of their stripes."""

import torch

from datamodules import ImageData


class Stripes(ImageData):
    """Black and white stripes, 16x16.

    Args:
        count: Images of each split.
        images: Arguments of `ImageData`.
    """

    shape = (1, 16, 16)
    num_classes = 2
    val_fraction = 0.25
    stored_depends_on = ("count",)

    def __init__(self, count: int = 40, **images) -> None:
        super().__init__(**images)
        self.count = count

    def stored(self, split):
        labels = torch.arange(self.count) % 2
        rows = (torch.arange(16) // 2 % 2 * 255).to(torch.uint8).expand(16, 16)
        return torch.stack([rows.T, rows])[labels][:, None], labels
'''


def test_a_data_set_is_one_file(tmp_path, monkeypatch):
    """It has splits, conversions, binarisation, a description, and is known to a checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stripes.py").write_text(STRIPES)
    train.main(
        ["fit", "--data=stripes.Stripes", "--data.count=60", "--data.batch_size=15", "--data.image_size=28",
         "--name=run", "--model=VAE", "--model.hidden=[4]", "--model.latent=2", "--trainer.max_epochs=1",
         "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    )  # fmt: skip
    run = tmp_path / "runs" / "run" / "version_0"
    train.main(["test", f"--ckpt_path={run}/checkpoints/last.ckpt", "--trainer.callbacks=[]"])
    results = json.loads((run / "test" / "version_0" / "results.json").read_text())
    assert results["protocol"]["Stripes"] == "test images of Stripes, 28x28, padded from 16x16, 8-bit"
    data = data_config(read_checkpoint(run / "checkpoints" / "last.ckpt"))
    again = find_class(data["class_path"], ImageData)(**data["init_args"])
    again.setup()
    assert again.sizes() == {"train": 45, "val": 15, "test": 60} and again.image_shape == (1, 28, 28)
    x, c = again.on_after_batch_transfer(next(iter(again.train_dataloader())), 0)
    assert x.shape == (15, 1, 28, 28) and set(c.tolist()) == {0, 1}
    assert (x[:, 0].std(1).mean((1,)) < x[:, 0].std(2).mean((1,))).equal(c == 1)  # rows are alike where stripes stand
