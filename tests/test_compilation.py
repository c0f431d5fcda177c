"""Compiled training steps compute what uncompiled ones do, with torch's real compiler."""

import os
import shutil

import pytest
import torch
from comparison import differing
from small_models import SMALL
from stubs import trainer
from torch.utils.data import DataLoader, TensorDataset

from callbacks import EMA
from datamodules import FashionMNIST
from lit_generative.checkpoints import read_checkpoint
from lit_generative.checkpoints.pretrained import export_programs
from lit_generative.errors import UserError
from lit_generative.models import VAE, WGANGP, LatentDiffusion, LatentFlow, RealNVP
from lit_generative.models.gradient_estimators import EstimatedVAE
from lit_generative.models.wgan import gradient_penalty
from lit_generative.training import precision
from lit_generative.training.compilation import CACHE, keep_compiled_code, require_compiler

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
compiles = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
MODELS = {
    "VAE": lambda: VAE(hidden=(4,), latent=2, kl_warmup=2, free_bits=0.1, lr_decay_start=0.5),
    "RealNVP": lambda: RealNVP(stack="fully_connected", couplings=2, width=4, depth=1, norm="act"),
    "labelled VAE": lambda: VAE(hidden=(4,), latent=2, classes=3, label_dropout=0.3),
    "labelled WGANGP": lambda: WGANGP(width=4, latent=4, n_critic=2, classes=3, label_dropout=0.3),
    "LatentFlow": lambda: LatentFlow(hidden=(4,), latent=4, couplings=1, width=4, depth=1),
    "WGANGP": lambda: WGANGP(width=4, latent=4, n_critic=2, accumulate_grad_batches=2),
    "LatentDiffusion": lambda: LatentDiffusion(SMALL["LatentDiffusion"]["autoencoder"], width=8, depth=1, steps=20),
}
# what is averaged
NETWORKS = {"VAE": "decoder", "RealNVP": "flow", "LatentFlow": "flow", "LatentDiffusion": "denoiser"}


def fit(model, folder):
    """Epochs of two batches of 8 images and one of 3; the checkpoint after them."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (19, *model.image_shape), generator=torch.Generator().manual_seed(0)) / 255
    # Adam makes steps of roundings
    run = trainer(
        folder,
        max_epochs=2,
        precision="64-true",
        callbacks=[EMA([NETWORKS.get(type(model).__name__, "generator")], 0.5)],
    )
    loader = DataLoader(TensorDataset(images, torch.arange(19) % 3), 8)
    run.fit(model, loader, loader)
    run.save_checkpoint(folder / "last.ckpt")
    return read_checkpoint(folder / "last.ckpt")


@compiles
@pytest.mark.parametrize("name", MODELS)
def test_compiled_steps_are_the_uncompiled_ones(tmp_path, name):
    torch.manual_seed(0)
    plain = MODELS[name]()
    compiled = MODELS[name]()
    compiled.load_state_dict(plain.state_dict())
    compiled.compile()
    expected, actual = fit(plain, tmp_path / "plain"), fit(compiled, tmp_path / "compiled")
    assert compiled.compile_seconds > 0 == plain.compile_seconds
    assert expected["state_dict"].keys() == actual["state_dict"].keys()  # no _orig_mod
    for key, value in expected["state_dict"].items():
        torch.testing.assert_close(actual["state_dict"][key], value, rtol=1e-6, atol=1e-8, msg=key)
    assert not set(compiled.compiled_functions) & vars(compiled).keys()  # a test runs the model's own
    averages = [checkpoint["lit_generative"]["training_weights"] for checkpoint in (expected, actual)]
    assert averages[0] and averages[0].keys() == averages[1].keys()  # what is tested are averages


@compiles
@pytest.mark.parametrize(
    ("name", "precision", "rel"), [("VAE", "64-true", 1e-6), ("RealNVP", "64-true", 1e-6), ("VAE", "bf16-mixed", 2e-3)]
)
def test_a_compiled_test_has_the_numbers_of_an_uncompiled_one(tmp_path, name, precision, rel):
    torch.manual_seed(0)
    plain, compiled = MODELS[name](), MODELS[name]()
    fit(plain, tmp_path)
    compiled.load_state_dict(plain.state_dict())
    compiled.compile()
    images = torch.randint(0, 256, (19, 1, 28, 28), generator=torch.Generator().manual_seed(0)) / 255
    loader, numbers = DataLoader(TensorDataset(images, torch.arange(19) % 3), 8), []
    for i, model in enumerate((plain, compiled)):
        torch.manual_seed(0)
        run = trainer(tmp_path / f"test_{i}", precision=precision)
        numbers += run.test(model, loader, verbose=False)
    assert compiled.compile_seconds > 0
    if precision == "bf16-mixed":  # likelihoods are sums in float32; small numbers differ by the networks' roundings
        numbers = [{key: found[key] for key in ("test/elbo", "test/nll", "test/bpd")} for found in numbers]
    assert numbers[1] == pytest.approx(numbers[0], rel=rel)
    assert not set(compiled.compiled_evaluations) & vars(compiled).keys()


@compiles
@pytest.mark.parametrize("name", ["VAE", "WGANGP"])
def test_a_compiled_run_resumes_exactly_and_becomes_a_program(name, tmp_path, data_dir):
    def run(folder, epochs, ckpt_path=None):
        torch.manual_seed(0)
        model = VAE(hidden=(4,), latent=2) if name == "VAE" else MODELS[name]()
        model.compile()
        data = FashionMNIST(str(data_dir), batch_size=8, val_size=16)
        run = trainer(folder, max_epochs=epochs, limit_train_batches=3, limit_val_batches=1)
        run.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        run.save_checkpoint(folder / "last.ckpt")
        assert model.compile_seconds > 0
        (folder / "programs").mkdir()
        assert export_programs(model.eval(), folder / "programs")
        return read_checkpoint(folder / "last.ckpt")

    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "half", 1)
    resumed = run(tmp_path / "rest", 2, tmp_path / "half" / "last.ckpt")
    assert not differing(whole["state_dict"], resumed["state_dict"])
    assert not differing(whole["optimizer_states"], resumed["optimizer_states"])


def test_a_training_after_one_that_failed_starts_from_the_own_functions(tmp_path):
    model = MODELS["VAE"]()
    vars(model)["objective"], model._replaced = "left behind", ("objective",)
    model.start_compiled()
    assert model.objective.__func__ is VAE.objective


def test_only_whole_training_batches_are_compiled(tmp_path):
    model = MODELS["VAE"]()
    model.compile()
    model.trainer = trainer(tmp_path)
    calls = []
    model.objective = lambda x: calls.append(len(x))
    step = model._compiled("objective", size=8)
    model.eval()
    step(torch.zeros(8, 1, 28, 28))
    model.train()
    step(torch.zeros(3, 1, 28, 28))
    assert calls == [8, 3]
    assert model.compile_seconds == 0


def test_penalty_is_the_closed_form_of_a_linear_critic():
    weight = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    penalty = gradient_penalty(lambda v: v.flatten(1) @ weight, x, -x)
    torch.testing.assert_close(penalty, (weight.norm() - 1) ** 2)


def test_compiled_code_is_kept_where_the_user_says_or_beside_downloads(monkeypatch):
    for given, kept in (("/tmp/torchinductor_me", str(CACHE)), ("/data/mine", "/data/mine")):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
        keep_compiled_code()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == kept


def test_an_unknown_mode_and_a_missing_compiler_are_said(monkeypatch):
    with pytest.raises(UserError, match="no mode fastest: choose default"):
        VAE(hidden=(4,), latent=2).compile("fastest")
    with pytest.raises(UserError, match="WGANGP cannot be compiled by CUDA graphs"):
        MODELS["WGANGP"]().compile("reduce-overhead")
    with pytest.raises(UserError, match="EstimatedVAE has no steps that can be compiled: remove --compile"):
        EstimatedVAE(hidden=(4,), latent=2).compile()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no-such-compiler is not installed"):
        require_compiler(torch.device("cpu"))
    require_compiler(torch.device("meta"))


@pytest.mark.parametrize(
    ("able", "chosen", "said"),
    [(True, "32-true", "bf16-mixed is usually faster"), (False, "bf16-mixed", "only emulates"), (None, "32-true", "")],
)
def test_a_run_says_which_precision_is_faster(tmp_path, monkeypatch, able, chosen, said):
    lines = []
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda: able)
    monkeypatch.setattr(precision, "rank_zero_info", lines.append)
    model = VAE(hidden=(4,), latent=2)
    model.trainer = trainer(tmp_path, precision=chosen)
    model.advise_precision()
    assert said in "".join(lines)
    assert bool(lines) == bool(said)
