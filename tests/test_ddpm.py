"""DDPM and latent diffusion: what the models add to the functions of `diffusion`."""

import math

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file
from stubs import trainer
from torch.distributions import Normal
from torch.testing import assert_close

from callbacks import EMA
from datamodules import FashionMNIST
from lit_generative.checkpoints import init_from
from lit_generative.checkpoints.load import CheckpointError, load_model, read_checkpoint
from lit_generative.diffusion.elbo import variational_bound
from lit_generative.likelihoods import bits_per_dim, standard_normal
from lit_generative.models.ddpm import DDPM
from lit_generative.models.latent_diffusion import LatentDiffusion
from lit_generative.models.vae import VAE
from lit_generative.utils.rng import forked_rng

TINY = {"channels": (8, 8), "groups": 4, "steps": 50, "sampling_steps": 5}


def tiny(**kwargs):
    model = DDPM(**(TINY | kwargs))
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return model.eval()


def images(n=4):
    return torch.randint(256, (n, 1, 28, 28)) / 255


@pytest.fixture
def data(data_dir):
    return FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)


class Perfect(DDPM):
    """Knows the image."""

    def __init__(self, x, **kwargs):
        super().__init__(**(TINY | kwargs))
        self.x_0 = self.to_data(x)

    def predict(self, x_t, t, c=None):
        a = self.schedule.at(t, x_t)[0].square()
        x_0 = self.x_0[:1].expand_as(x_t)
        return {"x_0": x_0, "eps": (x_t - a.sqrt() * x_0) / (1 - a).sqrt()}[self.parameterization]


def test_an_untrained_network_says_zero_and_loses_the_variance_of_the_noise():
    torch.manual_seed(0)
    model = DDPM(**TINY)
    losses = model.losses_at(images(64), torch.randint(1, 51, (64,)))
    assert losses.shape == (64,) and abs(float(losses.detach().mean()) - 1) < 0.05


def test_a_model_that_knows_the_image_loses_nothing_samples_it_and_bounds_it_closely():
    x = images(1)
    for parameterization in ("eps", "x_0"):
        model = Perfect(x, parameterization=parameterization, steps=1000)
        assert model.losses_at(x, torch.tensor([7])).max() < 1e-8
        for sampler in ("ancestral", "ddim", "dpm_solver"):
            assert_close(model.sample(2, sampler=sampler), x.expand(2, -1, -1, -1), atol=1e-3, rtol=0)
        bound = model.bound(x, terms=0)
        assert bound.diffusion.abs() < 0.05 and bound.stderr == 0  # with the small variance, p is q
        assert bound.prior < 0.1


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("schedule", "bits"), [("linear", 1.305), ("cosine", 0.739)])
def test_the_decoder_is_that_of_the_authors_code(schedule, bits, variance):
    """Where the network knows the image, all that L_0 costs is the mass beside the right level.

    That is -log2 erf(1/255 / sqrt(2 sigma^2)) bits of every pixel between black and white. The bits are for the paper's
    posterior variance beta~_2, which its authors take in both modes; beta_1 would give 1.713 and 1.125.
    """
    x = torch.randint(1, 255, (1, 1, 28, 28)) / 255
    model = Perfect(x, parameterization="x_0", steps=1000, schedule=schedule, variance=variance)
    bound = model.bound(x, terms=2)
    assert_close(float(bits_per_dim(-bound.decoder, 784)), bits, atol=5e-4, rtol=0)
    assert f"{variance} variance, beta~_2 in p(x_0|x_1)" in model.describe_test()


def test_the_networks_time_starts_at_0():
    config = {"class_path": "lit_generative.models.vae.VAE", "init_args": {"hidden": [8], "latent": 3}}
    for model in (tiny(), LatentDiffusion(config, width=8, depth=1, steps=50)):
        seen = []
        model.denoiser.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[1]))
        model.losses_at(images(2), torch.tensor([1, 50]))
        assert seen[0].tolist() == [0, 49]


def test_estimates_stay_in_range_and_samples_agree_with_them():
    model = tiny()
    x_0 = model.denoise(torch.randn(4, 1, 28, 28), torch.tensor([1, 2, 30, 50]))
    assert x_0.abs().max() == 1
    with torch.random.fork_rng():
        a = model.sample(2, steps=50, sampler="ddim", eta=1.0)
    assert a.min() >= 0 and a.max() <= 1


@pytest.mark.slow
def test_all_terms_and_some_agree():
    torch.manual_seed(0)
    model, x = tiny(steps=30), images(1).expand(100, -1, -1, -1)
    full, some = model.bound(x, terms=0), model.bound(x, terms=8)
    error = (some.diffusion.var() / 100 + full.diffusion.var() / 100).sqrt()
    assert abs(some.diffusion.mean() - full.diffusion.mean()) < 4 * error
    assert (model.log_prob(x) < 0).all() and not model.log_prob(x).requires_grad


def test_more_terms_than_there_are_is_all_of_them_and_the_kind_says_how_many_were_drawn():
    for terms, asked, kind in (
        (0, 49, "all"),
        (1, 2, "2 drawn"),
        (8, 8, "8 drawn"),
        (48, 40, "40 drawn"),
        (49, 49, "all"),
    ):
        model, seen = tiny(elbo_terms=terms), []
        model.denoiser.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args[0])))
        assert (model.bound(images(2)).stderr == 0).all() == (kind == "all")
        assert sum(seen) == 2 * (asked + 1)  # and for the decoder
        assert model.likelihood_kind == f"bound, {kind} of its 49 terms in t"
    assert DDPM(**TINY, elbo_terms=500).likelihood_kind == "bound, all of its 49 terms in t"
    assert DDPM(elbo_terms=20).likelihood_kind == "bound, 20 drawn of its 999 terms in t"
    assert DDPM(elbo_terms=200).likelihood_kind == "bound, 162 drawn of its 999 terms in t"  # strata hold a whole t


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_models_variance_is_that_of_its_bound_and_of_its_samples(variance):
    torch.manual_seed(0)
    model, x = tiny(variance=variance), images(2)
    other = tiny(variance={"small": "large", "large": "small"}[variance])
    other.load_state_dict(model.state_dict())

    def with_seed(f):
        torch.manual_seed(1)
        return f()

    assert (with_seed(lambda: model.bound(x).diffusion) != with_seed(lambda: other.bound(x).diffusion)).all()
    draw = {"sampler": "ancestral", "steps": 20}
    assert not torch.equal(with_seed(lambda: model.sample(2, **draw)), with_seed(lambda: other.sample(2, **draw)))
    eta = {"sampler": "ddim", "steps": 20}
    quiet, noisy = (with_seed(lambda e=e: model.sample(2, **eta, eta=e)) for e in (0.0, 1.0))
    assert not torch.equal(quiet, noisy)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampler": "euler"}, "there is no sampler euler: choose from ancestral, ddim, dpm_solver"),
        ({"eta": 0.5}, "the sampler dpm_solver has no option eta"),
        ({"sampler": "ddim", "eta": 7.0}, r"eta must be in \[0, 1\], got 7"),
        ({"guidance": 2.0}, "guidance must be .* > 0 only with labels"),
        ({"guidance": -1.0}, "guidance must be >= 0"),
        ({"steps": 0}, "sampling steps must be from 1 to 50"),
        ({"power": 0.5}, "power >= 1"),
        ({"power": 0.0}, "power >= 1"),
    ],
)
def test_options_that_would_do_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny().sample(1, **wrong)


def test_interpolations_are_what_noise_along_arcs_becomes():
    """Two draws of x_T per way and nothing else drawn: every image between is made of the first and the last."""
    model, seen, generate = tiny(), [], DDPM.generate
    model.generate = lambda x_T, *args, **kwargs: seen.append(x_T) or generate(model, x_T, *args, **kwargs)
    x = model.interpolate(2, 4)
    noise = seen[0].unflatten(0, (2, 4))
    start, end = noise[:, 0], noise[:, -1]
    for k, angle in enumerate((0, math.pi / 6, math.pi / 3, math.pi / 2)):
        assert_close(noise[:, k], math.cos(angle) * start + math.sin(angle) * end, atol=1e-6, rtol=0)
    draws = torch.stack([*start, *end]).flatten(1)
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.2 and abs(float(draws.std()) - 1) < 0.05
    torch.manual_seed(7)
    assert_close(generate(model, noise[1], sampler="dpm_solver"), x[4:])  # whatever the seed


def test_the_bound_of_random_weights_is_no_better_than_eight_bits_of_noise():
    torch.manual_seed(0)
    assert tiny().bound(images(8), terms=0).log_prob.mean() < -784 * math.log(256)


def test_what_a_model_knows_comes_back_from_noise_at_every_scale_and_else_does_not():
    known = images(1)
    errors = Perfect(known).ood_scores(torch.cat([known, images(1)]))["reconstruction"]
    assert errors.shape == (2, 5)
    assert errors[0].max() < 1e-4 and errors[1].min() > 0.05
    model, seen = tiny(steps=1000), []
    model.denoiser.register_forward_pre_hook(lambda module, args: seen.append(int(args[1][0]) + 1))
    model.ood_scores(images(1))
    assert seen[::10] == [100, 300, 500, 700, 900]


def test_films_show_the_diffusion_both_ways():
    model, x = tiny(), images(2)
    assert_close(model.noised(x, torch.tensor([0, 0])), x)
    late = model.noised(x, torch.tensor([50, 50]))
    assert abs(float(torch.corrcoef(torch.stack([late.flatten(), x.flatten()]))[0, 1])) < 0.1
    torch.manual_seed(0)
    frames = model.denoising_trajectory(3, 20)
    assert frames.shape == (4, 3, 1, 28, 28)  # at 50, 30, 10 and 0
    torch.manual_seed(0)
    assert_close(frames[-1], model.sample(3, sampler="ancestral", steps=50))


# -- classes ---------------------------------------------------------------------------------------


def test_guidance_goes_beyond_the_labelled_model():
    model, t = tiny(classes=3), torch.tensor([9, 9])
    x_t, c = torch.randn(2, 1, 28, 28), torch.tensor([0, 2])
    with_c, without = model.predict(x_t, t, c), model.predict(x_t, t)
    assert not torch.equal(with_c, without)
    assert torch.equal(without, model.predict(x_t, t, torch.full_like(c, 3)))
    assert_close(model.denoise(x_t, t, c, 0.0), model.denoise(x_t, t, c))
    a = model.schedule.at(t, x_t)[0].square()
    eps = with_c + 2.0 * (with_c - without)
    expected = ((x_t - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
    assert_close(model.denoise(x_t, t, c, 2.0), expected, atol=1e-5, rtol=1e-5)
    assert model.sample(2, c, guidance=2.0).shape == (2, 1, 28, 28)


def test_the_bound_given_a_class_is_that_of_every_image_with_its_own():
    """Any number of images, whatever the chunks; with the same noise, one image has the number that it has alone."""
    model, x, c = tiny(classes=3), images(3), torch.tensor([0, 2, 1])
    assert model.log_prob(x, c).shape == (3,) and model.bound(x, c, terms=0).decoder.shape == (3,)
    seen = []
    model.denoiser.register_forward_pre_hook(lambda module, args: seen.append((args[0], args[2])))
    bound = variational_bound(model.denoise, model.schedule, model.to_data(x), lambda *_: 0.0, terms=8, chunk=5, c=c)
    assert bound.diffusion.shape == (3,)
    labels = torch.cat([label for _, label in seen[:-1]])
    assert labels.tolist() == c.repeat(len(labels) // 3).tolist() and seen[-1][1].tolist() == c.tolist()


def test_labels_matter_in_test(data, tmp_path):
    fit = trainer(tmp_path, logger=False, limit_test_batches=1)
    model = tiny(classes=10)
    given = fit.test(model, datamodule=data, verbose=False)[0]["test/nll"]
    data.on_after_batch_transfer = lambda batch, i: (batch[0] / 255, (batch[1] + 1) % 10)
    assert fit.test(model, datamodule=data, verbose=False)[0]["test/nll"] != given
    assert "given the class" in model.describe_test() and not model.log_prob_kind.endswith("class")


def test_classes_are_held_against_the_data(data, tmp_path):
    with pytest.raises(ValueError, match=r"built for 9 classes, but FashionMNIST has 10: set --model\.classes 10"):
        trainer(tmp_path, logger=False).fit(DDPM(**TINY, classes=9), datamodule=data)
    with pytest.raises(ValueError, match="> 0 with classes"):
        DDPM(**TINY, classes=10, label_dropout=0.0)


def test_labels_are_checked_where_they_are_drawn():
    for c in (torch.tensor([0, 3]), torch.tensor([1])):
        with pytest.raises(ValueError, match="a label from 0 to 2 for each of 2 images"):
            tiny(classes=3).sample(2, c)


def test_some_labels_are_hidden_in_training(data, tmp_path):
    model, seen = DDPM(**TINY, classes=10, label_dropout=0.5), []
    model.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[2]) if module.training else None)
    trainer(tmp_path, max_steps=12, max_epochs=-1, logger=False, limit_val_batches=0).fit(model, datamodule=data)
    labels = torch.cat(seen)
    assert 0.3 < (labels == 10).double().mean() < 0.7 and labels[labels < 10].unique().numel() > 3


# -- weights ---------------------------------------------------------------------------------------


def reference():
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_num_groups=4,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    )


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_it_starts_from_weights_of_diffusers(suffix, tmp_path, data):
    net = reference()
    path = tmp_path / f"diffusion_pytorch_model.{suffix}"
    save_file(net.state_dict(), path) if suffix == "safetensors" else torch.save(net.state_dict(), path)
    model = init_from(DDPM(**TINY, patch=1), str(path))
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([3, 50])
    with torch.no_grad():
        assert_close(model.predict(x, t), net.eval()(x, t - 1).sample, atol=1e-5, rtol=1e-5)
    fit = trainer(tmp_path, max_steps=1, max_epochs=-1, logger=False, limit_val_batches=0)
    fit.fit(model, datamodule=data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    path.unlink()  # no longer needed
    assert isinstance(load_model(tmp_path / "a.ckpt"), DDPM)


def test_it_starts_from_a_checkpoint_of_another_size_of_images(tmp_path, data):
    model = DDPM(**TINY)
    fit = trainer(tmp_path, max_steps=1, max_epochs=-1, logger=False, limit_val_batches=0)
    fit.fit(model, datamodule=data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    again = init_from(DDPM(**TINY, image_shape=(1, 32, 32)), str(tmp_path / "a.ckpt"))
    assert_close(again.denoiser.state_dict(), model.denoiser.state_dict())


def test_weights_that_hardly_fit_are_refused(tmp_path):
    torch.save(tiny(patch=1).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"left fresh.*is it a checkpoint of another model"):
        init_from(DDPM(**TINY | {"channels": (16, 16)}), str(tmp_path / "a.pt"))
    torch.save({"a": 3}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        init_from(DDPM(**TINY), str(tmp_path / "b.pt"))
    (tmp_path / "c.safetensors").write_bytes(b"not that")
    with pytest.raises(CheckpointError, match="damaged"):
        init_from(DDPM(**TINY), str(tmp_path / "c.safetensors"))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        init_from(DDPM(**TINY), str(tmp_path / "nowhere.pt"))


def test_schedules_are_in_no_checkpoint_and_averages_leave_them_alone(tmp_path, data):
    model = DDPM(**TINY)
    before = model.schedule.alpha_bar.clone()
    fit = trainer(tmp_path, max_steps=3, max_epochs=-1, logger=False, callbacks=[EMA(["denoiser"])])
    fit.fit(model, datamodule=data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    state = read_checkpoint(tmp_path / "a.ckpt")
    assert not [
        name
        for name in (*state["state_dict"], *state["lit_generative"]["training_weights"])
        if "alpha" in name or "freq" in name
    ]
    assert torch.equal(model.schedule.alpha_bar, before) and model.schedule.alpha_bar.dtype == torch.float64
    again = DDPM.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(again.schedule.alpha_bar, before)


# -- training and testing --------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_mixed_precision_clips_gradients(precision, tmp_path, data):
    few = {"max_steps": 2, "max_epochs": -1, "logger": False, "limit_val_batches": 1}
    fit = trainer(tmp_path, **few, precision=precision, gradient_clip_val=1.0)
    fit.fit(DDPM(**TINY), datamodule=data)
    assert fit.optimizers[0].defaults["fused"] is (precision == "32-true")


@pytest.mark.slow
def test_times_are_drawn_from_1_to_T_and_validation_spreads_them(tmp_path, data):
    model, seen = DDPM(**TINY | {"steps": 4, "sampling_steps": 2}), {True: [], False: []}
    model.denoiser.register_forward_pre_hook(lambda module, args: seen[module.training].append(args[1] + 1))
    trainer(tmp_path, max_epochs=8, logger=False, num_sanity_val_steps=0).fit(model, datamodule=data)
    assert torch.cat(seen[True]).unique().tolist() == [1, 2, 3, 4]
    counts = torch.cat(seen[False]).bincount()[1:]
    assert len(counts) == 4 and counts.max() - counts.min() <= len(seen[False])


def test_the_learning_rate_warms_up_and_falls(tmp_path, data):
    model, seen = DDPM(**TINY, lr=1.0, lr_warmup_steps=4, lr_decay_start=0.5), []

    class Watch(EMA):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit = trainer(
        tmp_path, max_steps=12, max_epochs=-1, logger=False, limit_val_batches=0, callbacks=[Watch(["denoiser"])]
    )
    fit.fit(model, datamodule=data)
    assert_close(seen, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_test_reports_the_bound_and_its_parts(tmp_path, data):
    fit = trainer(tmp_path, logger=False)
    model = tiny()
    (metrics,) = fit.test(model, datamodule=data, verbose=False)
    parts = sum(metrics[f"test/{name}"] for name in ("prior_kl", "diffusion", "decoder"))
    assert_close(metrics["test/nll"], parts, rtol=1e-5, atol=1e-3)
    assert_close(metrics["test/bpd"], metrics["test/nll"] / (784 * math.log(2)), rtol=1e-5, atol=0)
    spread = []
    for i, batch in enumerate(data.test_dataloader()):
        with forked_rng(i):
            spread.append(model.bound(batch[0] / 255).stderr.detach())
    spread = torch.cat(spread)
    expected = float(spread.square().sum().sqrt() / len(spread))
    assert_close(metrics["test/drawn_terms_error"], expected, rtol=1e-4, atol=0)
    (fewer,) = fit.test(tiny(elbo_terms=0), datamodule=data, verbose=False)
    assert fewer["test/drawn_terms_error"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_steps": 51},
        {"steps": 1},
        {"lr_warmup_steps": -1},
        {"elbo_terms": -2},
        {"classes": -1},
        {"label_dropout": 1.5},
        {"lr_decay_start": 2.0},
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError):
        DDPM(**TINY | wrong)


# -- latent diffusion ------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic"])
def test_latent_diffusion_with_the_prior_for_a_model_has_the_bound_of_the_vae(likelihood):
    """log p(x|z) - log q(z|x) + log p(z) of the same z: with the exact denoiser of N(0, I) the last is no bound.

    E[z|z_t] = sqrt(alpha_bar_t) z_t, and the large variance is that of the true reverse steps, beta_1 in the last one.
    """
    init_args = {"image_shape": [1, 4, 4], "hidden": [16], "latent": 8, "likelihood": likelihood}
    config = {"class_path": "lit_generative.models.vae.VAE", "init_args": init_args}
    few = {"steps": 20, "schedule": "cosine", "parameterization": "v", "elbo_terms": 0}
    model = LatentDiffusion(config, image_shape=(1, 4, 4), width=8, depth=1, **few).double()
    model.denoise = lambda z_t, t: model.schedule.at(t, z_t)[0] * z_t
    means, log_var = torch.randn(2, 8, dtype=torch.float64), torch.linspace(-4, 1, 8, dtype=torch.float64)
    model.autoencoder.q = lambda x, c=None: Normal(means.repeat(len(x) // 2, 1), (log_var / 2).exp())
    x = torch.randint(2, (2, 1, 4, 4)).double().repeat(10_000, 1, 1, 1)
    torch.manual_seed(1)
    bound = model.bound(x).log_prob
    torch.manual_seed(1)
    q = model.autoencoder.q(x)
    z = q.sample()
    expected = model.autoencoder.p(z[None]).log_prob(x)[0] - q.log_prob(z).sum(1) + standard_normal(z)
    for difference in (bound - expected).unflatten(0, (-1, 2)).T:
        error = float(difference.std() / len(difference) ** 0.5)
        assert error < 0.05 and abs(float(difference.mean())) < 4 * error


@pytest.mark.parametrize(("likelihood", "levels"), [("bernoulli", 2), ("logistic", 256)])
def test_a_latent_diffusion_counts_its_pixels_as_its_autoencoder_does(likelihood, levels, data_dir, tmp_path):
    init_args = {"hidden": [8], "latent": 3, "likelihood": likelihood, "test_k": [1]}
    config = {"class_path": "lit_generative.models.vae.VAE", "init_args": init_args}
    model, vae = LatentDiffusion(config, width=8, depth=1, steps=20, sampling_steps=2), VAE(**init_args)
    data = FashionMNIST(str(data_dir), batch_size=40, val_size=16, binarize="static" if levels == 2 else "none")
    fit = trainer(tmp_path, logger=False)
    for each in (model, vae):
        (found,) = fit.test(each, datamodule=data, verbose=False)
        assert ("test/bpd" in found) is ("test/bpd_stderr" in found) is (levels == 256)
        assert f"over 784 pixels of {levels} levels" in each.describe_test()
        assert ("nll, bpd: " in each.describe_test()) is (levels == 256)
    assert model.log_prob_kind == model.likelihood_kind == "bound, all of its 19 terms in t, one draw of z"
    assert "large variance, beta_1 in p(x_0|x_1)" in model.describe_test()


def test_latent_diffusion_learns_its_denoiser_alone_and_needs_no_other_file(tmp_path, data):
    fit = trainer(tmp_path, max_steps=2, max_epochs=-1, logger=False)
    fit.fit(VAE(hidden=(8,), latent=3), datamodule=data)
    fit.save_checkpoint(tmp_path / "vae.ckpt")
    model = LatentDiffusion(str(tmp_path / "vae.ckpt"), width=8, depth=1, steps=50)
    before = {name: p.clone() for name, p in model.named_parameters()}
    fit = trainer(tmp_path, max_steps=5, max_epochs=-1, logger=False)
    with pytest.warns(UserWarning, match="in eval mode at the start of training"):  # meant: it does not learn
        fit.fit(model, datamodule=data)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.startswith("denoiser.")}
    fit.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "vae.ckpt").unlink()
    again = load_model(tmp_path / "a.ckpt")
    torch.manual_seed(0)
    expected = model.eval().sample(3)
    torch.manual_seed(0)
    assert torch.equal(again.sample(3), expected)


def test_a_schedule_without_signal_is_refused_where_nothing_is_cut():
    config = {"class_path": "lit_generative.models.vae.VAE", "init_args": {"hidden": [16], "latent": 3}}
    with pytest.raises(ValueError, match="the cosine schedule leaves nothing of z at T"):
        LatentDiffusion(config, schedule="cosine")
    LatentDiffusion(config, schedule="cosine", parameterization="v")


def test_a_first_stage_without_a_posterior_is_refused():
    config = {"class_path": "lit_generative.models.realnvp.RealNVP", "init_args": {"width": 4, "depth": 1}}
    with pytest.raises(TypeError, match="must have a posterior `q` and a likelihood `p`"):
        LatentDiffusion(config)
