"""Precisions, dtypes, and devices without float64."""

import pytest
import torch
from device_without_float64 import DEVICE, device_without_float64, strategy
from lightning.pytorch import Trainer
from small_models import SMALL
from test_contract import PARAMS, build, images, sources
from torch.utils.data import DataLoader

from lit_generative.diffusion.schedules import linear
from lit_generative.metrics.aggregation import Moments
from lit_generative.metrics.frechet import Features
from lit_generative.models.vae import VAE
from lit_generative.models.wgan import gradient_penalty
from lit_generative.utils.precision import exact, exact_device

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
]
IN_BFLOAT16 = ("DCGAN", "WGAN", "Pix2Pix", "CycleGAN")  # the others have likelihoods or penalties that it would round


def batches(model):
    c = sources(model, 4)
    pairs = zip(images(model, 4), torch.arange(4) if c is None else c, strict=True)
    return DataLoader(list(pairs), batch_size=2)


def run(model, **options):
    """Train on two batches, validate and test; the metrics of the test."""
    data = batches(model)
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, num_sanity_val_steps=0, **options)  # fmt: skip
    trainer.fit(model, data, data)
    trainer.test(model, data, verbose=False)
    return trainer.callback_metrics


@pytest.fixture(params=PARAMS)
def model(request):
    return build(request.param)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_a_model_works_in_a_precision_or_names_another(model, precision):
    name = type(model).__name__
    if precision == "16-true" or (precision == "bf16-true" and name not in IN_BFLOAT16):
        with pytest.raises(ValueError, match=f"{name} cannot run in {precision}: [^\n]*; choose bf16-mixed$"):
            run(model, accelerator="cpu", precision=precision)
        return
    metrics = run(model, accelerator="cpu", precision=precision)
    x = model.sample(3, sources(model, 3))
    assert all(value.isfinite() for value in metrics.values())
    assert x.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    assert x.isfinite().all() and x.min() >= 0 and x.max() <= 1


def test_a_model_draws_in_its_own_dtype(model):
    """By every method that it has."""
    model.double().eval()
    x, c = images(model, 2).double(), sources(model, 2)
    draws = {
        "sample": (2, c), "interpolate": (2, 3), "denoising_trajectory": (2, 10), "noised": (x, torch.tensor([1, 2])),
        "log_prob": (x,), "reconstruct": (x,), "ood_scores": (x,), "encode": (x,),
    }  # fmt: skip
    for name, arguments in draws.items():
        if hasattr(model, name):
            out = getattr(model, name)(*arguments)
            for value in out.values() if isinstance(out, dict) else [out]:
                assert value.dtype == torch.float64 and value.isfinite().all(), name
    sampled = model.bfloat16().sample(2, c)
    assert sampled.isfinite().all() and sampled.shape == (2, *model.image_shape)


@pytest.mark.parametrize("convert", ["half", "float", "double", "bfloat16", "to"])
def test_float64_stays_float64_in_a_model_of_another_dtype(convert):
    module = torch.nn.ModuleList([Moments(1), Features(1), linear(10)])
    module.append(torch.nn.Linear(1, 1))
    getattr(module, convert)(*[torch.float16] * (convert == "to"))
    moments, features, schedule, _ = module
    assert torch.equal(schedule.alpha_bar, linear(10).alpha_bar) and schedule.alpha_bar.dtype == torch.float64
    x = torch.tensor([[16777217.0], [1.0]])  # 2^24 + 1
    for metric, rest in ((moments, ()), (features, (torch.arange(2),))):
        metric.reset()
        metric.update(x, *rest)
        assert metric.total.dtype == torch.float64 and float(metric.total) == float(x.double().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_penalty_of_a_linear_critic_has_a_closed_form_in_every_dtype(dtype):
    critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 1)).to(dtype)
    x, fake = torch.rand(2, 4, 1, 3, 3, dtype=dtype)
    expected = (critic[1].weight.norm() - 1).square()
    torch.testing.assert_close(gradient_penalty(critic, x, fake), expected)


# -- a device without float64 ----------------------------------------------------------------------


def test_the_device_of_these_tests_refuses_float64(monkeypatch):
    with device_without_float64(monkeypatch):
        x = torch.ones(2, device=DEVICE)
        assert x.device == DEVICE and exact_device(x.device) == torch.device("cpu")
        assert exact(x).dtype == torch.float64 and exact(x).tolist() == [1, 1]
        for refused in (x.double, lambda: torch.ones(2, dtype=torch.float64, device=DEVICE),
                        lambda: torch.ones(2).double().to(DEVICE), lambda: x.to("cpu", torch.float64)):  # fmt: skip
            with pytest.raises(TypeError, match="float64"):
                refused()
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2)


def test_a_model_trains_and_is_tested_on_a_device_without_float64(model, monkeypatch):
    """As on the CPU."""
    torch.manual_seed(1)
    expected = run(build(type(model)), accelerator="cpu")
    torch.manual_seed(1)
    with device_without_float64(monkeypatch), torch.autograd.set_multithreading_enabled(False):
        # in inference mode our device would not see how operations are made of others
        metrics = run(build(type(model)), strategy=strategy(), inference_mode=False)
        metrics = {name: value.cpu() for name, value in metrics.items()}
    # images lie in memory in another way there, see `image_layout`: roundings differ, which a step of Adam amplifies
    torch.testing.assert_close(metrics, {k: v.cpu() for k, v in expected.items()}, rtol=5e-3, atol=1e-5)


def test_float64_throughout_is_refused_on_such_a_device(monkeypatch):
    with device_without_float64(monkeypatch), pytest.raises(ValueError, match="there is no float64 on meta: choose"):
        run(VAE(**SMALL["VAE"]), strategy=strategy(), precision="64-true")


@pytest.mark.parametrize(("before", "during"), [("highest", "high"), ("high", "high"), ("medium", "medium")])
def test_a_gpu_multiplies_quickly_in_training_and_as_before_after_it(monkeypatch, before, during):
    model, found = build(VAE), torch.get_float32_matmul_precision()
    monkeypatch.setattr(VAE, "device", torch.device("cuda"))
    try:
        torch.set_float32_matmul_precision(before)
        model.start_products()
        assert torch.get_float32_matmul_precision() == during
        model.end_products()
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(found)
