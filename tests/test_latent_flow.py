"""Two stages in one run: an autoencoder, then a flow of its latents."""

import math
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from stubs import trainer
from torch.distributions import Independent, Normal
from torch.testing import assert_close

from datamodules import FashionMNIST
from lit_generative.checkpoints.load import load_model
from lit_generative.models.latent_flow import LatentFlow
from lit_generative.models.realnvp import RealNVP
from lit_generative.models.vae import VAE


def small(**kwargs):
    return LatentFlow(**({"hidden": (8,), "latent": 4, "couplings": 2, "width": 8, "depth": 1} | kwargs))


@pytest.fixture
def data(data_dir):
    return FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)  # five steps an epoch


class States(Callback):
    def __init__(self):
        self.autoencoder, self.flow, self.val = [], [], []

    def on_train_batch_end(self, trainer, model, *_):
        for states, network in ((self.autoencoder, model.autoencoder), (self.flow, model.flow)):
            states.append(torch.cat([p.detach().flatten().clone() for p in network.parameters()]))

    def on_validation_end(self, trainer, model):
        self.val.append(float(trainer.callback_metrics["val/loss"]))


def moves(states):
    return [not torch.equal(a, b) for a, b in pairwise(states)]


def test_first_the_autoencoder_then_the_flow(data, tmp_path):
    states, keep = States(), ModelCheckpoint(tmp_path / "c", filename="best", monitor="val/loss")
    fit = trainer(tmp_path, callbacks=[states, keep], max_epochs=4, enable_checkpointing=True, num_sanity_val_steps=0)
    fit.fit(small(), datamodule=data)
    assert moves(states.autoencoder) == [True] * 9 + [False] * 10  # half of twenty steps
    assert moves(states.flow) == [False] * 9 + [True] * 10
    assert states.val[0] == math.inf and math.isfinite(states.val[2])
    assert torch.load(keep.best_model_path, weights_only=True)["epoch"] >= 2  # chosen once there is a density


def test_the_stages_stay_when_a_longer_run_resumes(data, tmp_path):
    fit = trainer(tmp_path, max_epochs=2, logger=False)
    fit.fit(small(), datamodule=data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    model, states = small(), States()
    again = trainer(tmp_path, max_epochs=6, logger=False, callbacks=[states])
    again.fit(model, datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert all(moves(states.flow)) and not any(moves(states.autoencoder))


def test_the_density_is_the_flows():
    """Against torch.distributions and autograd, at weights that are not zero."""
    model = small().double().eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    h = model.autoencoder.encode(x)
    base = Independent(Normal(torch.zeros(4).double(), 1), 1)
    jacobian = torch.autograd.functional.jacobian(lambda v: model.flow(v)[0], h[:1])[0, :, 0]
    expected = base.log_prob(model.encode(x))[0] + torch.linalg.slogdet(jacobian)[1]
    assert_close(model.latent_log_density(h)[0], expected)
    assert_close(model.decode(model.encode(x)), model.reconstruct(x))


def test_scores_are_the_density_the_error_and_both_in_nats():
    model = small().eval()
    x = torch.rand(5, 1, 28, 28)
    scores = {name: score.detach() for name, score in model.ood_scores(x).items()}
    density = -model.latent_log_density(model.autoencoder.encode(x)).detach()
    pixels = Normal(model.reconstruct(x).detach(), math.sqrt(0.5)).log_prob(x).flatten(1).sum(1)
    assert_close(scores["latent_density"], density)
    assert_close(scores["reconstruction"], (x - model.reconstruct(x).detach()).square().flatten(1).sum(1))
    constant = scores["sum"] - (density - pixels)  # differs by the same number for every image
    assert_close(constant, constant[:1].expand(5), atol=1e-3, rtol=0)


def test_a_trained_model_lends_its_latents_and_its_file_may_go(data, tmp_path):
    fit = trainer(tmp_path, max_steps=3, logger=False)
    fit.fit(VAE(hidden=(8,), latent=3), datamodule=data)
    fit.save_checkpoint(tmp_path / "vae.ckpt")
    vae = load_model(tmp_path / "vae.ckpt")
    model, states = small(autoencoder=str(tmp_path / "vae.ckpt")), States()
    assert model.latent == 3 and not model.train().autoencoder.training
    fit = trainer(tmp_path, max_epochs=1, logger=False, callbacks=[states])
    with pytest.warns(UserWarning, match="in eval mode at the start of training"):  # meant: it does not learn
        fit.fit(model, datamodule=data)
    assert not any(moves(states.autoencoder)) and all(moves(states.flow))
    assert all(torch.equal(p, vae.state_dict()[name]) for name, p in model.autoencoder.state_dict().items())
    fit.save_checkpoint(tmp_path / "flow.ckpt")
    (tmp_path / "vae.ckpt").unlink()
    again = load_model(tmp_path / "flow.ckpt")
    torch.manual_seed(0)
    expected = model.sample(3)
    torch.manual_seed(0)
    assert torch.equal(again.sample(3), expected)


def test_what_cannot_be_borrowed_is_refused(data, tmp_path):
    fit = trainer(tmp_path, max_steps=1, logger=False)
    fit.fit(VAE(hidden=(8,), latent=3), datamodule=data)
    fit.save_checkpoint(tmp_path / "vae.ckpt")
    with pytest.raises(ValueError, match=r"one of images \(1, 28, 28\), not \(1, 32, 32\)"):
        small(image_shape=(1, 32, 32), autoencoder=str(tmp_path / "vae.ckpt"))
    from lit_generative.models.dcgan import DCGAN

    fit = trainer(tmp_path, max_steps=1, logger=False)
    fit.fit(DCGAN(width=4, latent=4), datamodule=data)
    fit.save_checkpoint(tmp_path / "gan.ckpt")
    with pytest.raises(TypeError, match="must `encode` and `decode`, which DCGAN cannot"):
        small(autoencoder=str(tmp_path / "gan.ckpt"))


def test_what_cannot_work_is_said_at_the_start(data, tmp_path):
    with pytest.raises(ValueError, match="autoencoder_fraction needs to know the length of the run"):
        trainer(tmp_path, max_epochs=-1, max_time="00:00:01:00", logger=False).fit(
            small(lr_decay_start=1.0), datamodule=data
        )
    with pytest.raises(ValueError, match="a run of 1 steps leaves none for one of the two stages"):
        trainer(tmp_path, max_steps=1, logger=False).fit(small(), datamodule=data)
    with pytest.raises(ValueError, match="drop EarlyStopping"):
        trainer(tmp_path, callbacks=[EarlyStopping("val/loss")], logger=False).fit(small(), datamodule=data)
    with pytest.raises(ValueError, match="a coupling needs vectors of dimension >= 2, got 1"):
        small(latent=1)
    model = small()
    model._trainer = Mock(strategy=DDPStrategy(), datamodule=None, precision="32-true", max_epochs=1)
    with pytest.raises(ValueError, match=r"LatentFlow trains the autoencoder first .* ddp_find_unused_parameters_true"):
        model.setup("fit")


def test_the_tests_numbers_are_the_means_over_images(data, tmp_path):
    model = small().eval()
    with torch.no_grad():
        for p in model.flow.parameters():
            p += 0.1 * torch.randn_like(p)
        data.prepare_data()
        data.setup("test")
        x = torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in data.test_dataloader()])
        log_density, error = model.density_and_error(x)
    found = trainer(tmp_path, logger=False).test(model, datamodule=data, verbose=False)[0]
    assert found["test/latent_log_density"] == pytest.approx(float(log_density.mean()), rel=1e-5)
    assert found["test/reconstruction"] == pytest.approx(float(error.mean()), rel=1e-5)
    assert found["test/not_finite"] == 0
    model.latent_log_density = lambda h: torch.full((len(h),), math.nan)
    found = trainer(tmp_path, logger=False).test(model, datamodule=data, verbose=False)[0]
    assert found["test/latent_log_density"] == -math.inf and found["test/not_finite"] == 1


def test_a_checkpoint_is_validated_by_its_density(data, tmp_path):
    states = States()
    fit = trainer(tmp_path, callbacks=[states], max_epochs=2, num_sanity_val_steps=0)
    fit.fit(small(), datamodule=data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    found = trainer(tmp_path, logger=False).validate(load_model(tmp_path / "a.ckpt"), datamodule=data, verbose=False)
    assert found[0]["val/loss"] == pytest.approx(states.val[-1], rel=1e-5)


def test_another_training_has_both_stages_again(data, tmp_path):
    fit = trainer(tmp_path, max_epochs=2, logger=False)
    model = small()
    fit.fit(model, datamodule=data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    for again in (model, LatentFlow.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)):
        states = States()
        trainer(tmp_path, max_epochs=4, logger=False, callbacks=[states]).fit(again.train(), datamodule=data)
        assert moves(states.autoencoder) == [True] * 9 + [False] * 10


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resuming_the_second_stage_changes_nothing(data_dir, tmp_path):
    def run(folder, ckpt_path=None):
        data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
        keep = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        fit = trainer(tmp_path, callbacks=[keep], logger=False, enable_checkpointing=True)
        fit.fit(small(), datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return torch.load(tmp_path / folder / "step=10.ckpt", weights_only=True)

    whole = run("whole")
    resumed = run("resumed", tmp_path / "whole" / "step=8.ckpt")
    for key in ("state_dict", "optimizer_states"):
        assert_close(resumed[key], whole[key], atol=0, rtol=0)
    assert resumed["lit_generative"]["run"]["flow_started"] is whole["lit_generative"]["run"]["flow_started"] is True


def test_temperature_shrinks_the_latents():
    model = small()
    assert_close(model.sample(2, temperature=0.0), model.decode(torch.zeros(2, 4)).detach())


def test_a_flow_of_images_lends_its_latents_too(data, tmp_path):
    """Any model that encodes and decodes will do."""
    fit = trainer(tmp_path, max_steps=1, logger=False)
    fit.fit(RealNVP(stack="fully_connected", couplings=2, width=4, depth=1), datamodule=data)
    fit.save_checkpoint(tmp_path / "flow.ckpt")
    assert small(autoencoder=str(tmp_path / "flow.ckpt")).latent == 784
