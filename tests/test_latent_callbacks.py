"""Callbacks that look at latent spaces, each on its protocol alone."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from stubs import Quarters, Reconstructor, Stub, trainer
from test_callbacks import pictures
from torch.distributions import Normal
from torch.testing import assert_close

from callbacks import (
    AttributeDirection,
    Disentanglement,
    LatentScatter,
    LatentTraversal,
    PosteriorStatistics,
    ReconstructionFID,
    ReconstructionGrid,
)
from datamodules import FashionMNIST, Sprites
from lit_generative.metrics.frechet import Gaussian, frechet_distance

pytestmark = pytest.mark.slow


@pytest.fixture
def data(data_dir):
    return FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32)


class Latents(Stub):
    """Quarters' mean levels in [0, 1], and flat quarters of such levels."""

    def encode(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)

    def decode(self, z):
        return z.view(-1, 1, 2, 2).repeat_interleave(14, 2).repeat_interleave(14, 3).clamp(0, 1)


class Posterior(Stub):
    def q(self, x):
        mu = 4 * torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return Normal(
            torch.cat([mu, torch.zeros(len(x), 1)], 1), torch.tensor([0.1, 0.2, 0.3, 0.4, 1.0]).expand(len(x), 5)
        )


def test_a_traversal_moves_one_dimension_over_what_occurs(data, tmp_path):
    model = Latents()
    trainer(tmp_path, callbacks=[LatentTraversal(steps=3, dims=4, quantile=0.0)]).test(model, datamodule=data)
    drawn = torch.from_numpy(pictures(tmp_path)["traversals_test"])[..., 0]
    assert drawn.shape == (4 * 30 + 2, 3 * 30 + 2)
    x = next(iter(data.test_dataloader()))[0]
    z = model.encode(data.on_after_batch_transfer((x, x), 0)[0])
    order = z.var(0).argsort(descending=True)
    for row, dim in enumerate(order.tolist()):
        for column, value in enumerate((z[:, dim].min(), (z[:, dim].min() + z[:, dim].max()) / 2, z[:, dim].max())):
            expected = z[0].clone()
            expected[dim] = value
            tile = drawn[2 + 30 * row : 30 + 30 * row, 2 + 30 * column : 30 + 30 * column]
            corners = tile[[0, 0, 27, 27], [0, 27, 0, 27]]
            assert (corners - (255 * expected).round()).abs().max() <= 1


@pytest.mark.parametrize("batch_size", [1, 16, 40])
def test_an_attribute_is_added_to_images_of_the_first_class(batch_size, data_dir, tmp_path):
    """The difference of two classes' means over training images, whatever the batches have of the first class."""
    data, model = FashionMNIST(data_dir=str(data_dir), batch_size=batch_size), Latents()
    callback = AttributeDirection(classes=(2, 7), steps=(0, 1), n=3, num_images=50)
    trainer(tmp_path, callbacks=[callback]).test(model, datamodule=data)
    drawn = torch.from_numpy(pictures(tmp_path)["attribute_test"])[..., 0].float()
    images, labels = data.stored("train")
    means = [model.encode(images[labels == label][:50].float() / 255).mean(0) for label in (2, 7)]
    x, c = data.stored("test")
    z = model.encode(x[c == 2][:3].float() / 255)
    assert len(z) == 3 and drawn.shape == (3 * 30 + 2, 2 * 30 + 2)
    for column, expected in enumerate((z, z + means[1] - means[0])):
        tiles = drawn[2:, 2 + 30 * column : 30 + 30 * column].unfold(0, 28, 30)  # (3, 28, 28), columns first
        corners = tiles[:, [0, 27, 0, 27], [0, 0, 27, 27]]
        assert (corners - (255 * expected.clamp(0, 1)).round()).abs().max() <= 1


@pytest.mark.parametrize("batch_size", [7, 40])
def test_fewer_images_than_asked_for_are_shown_and_said(batch_size, data_dir, tmp_path, caplog):
    data = FashionMNIST(data_dir=str(data_dir), batch_size=batch_size)
    there = int((data.stored("test")[1] == 2).sum())
    callbacks = [AttributeDirection(classes=(2, 7), n=30), ReconstructionGrid(n=50, columns=10)]

    class Both(Latents):
        def reconstruct(self, x, c=None):
            return x

    with caplog.at_level("INFO"):
        trainer(tmp_path, callbacks=callbacks).test(Both(), datamodule=data)
    drawn = pictures(tmp_path)
    assert 0 < there < 30 and drawn["attribute_test"].shape[0] == there * 30 + 2
    assert drawn["reconstructions_test"].shape[:2] == (2 * 4 * 30 + 2, 10 * 30 + 2)  # all 40, in four rows
    assert f"AttributeDirection shows {there} images of class 2, not 30" in caplog.text
    assert "ReconstructionGrid shows 40 images, not 50: the data have no more" in caplog.text


def test_an_attribute_needs_both_classes(data, tmp_path):
    with pytest.raises(ValueError, match=r"FashionMNIST has no images of class 11; it has \[0, 1"):
        trainer(tmp_path, callbacks=[AttributeDirection(classes=(0, 11))]).test(Latents(), datamodule=data)


@pytest.mark.parametrize("latent", [1, 2, 4])
def test_a_scatter_shows_two_dimensions_or_principal_components(latent, data, tmp_path, monkeypatch):
    class Few(Latents):
        def encode(self, x):
            return super().encode(x)[:, :latent]

    seen = []
    monkeypatch.setattr(
        "callbacks.visualization.latent_scatter.scatter", lambda *args: seen.append(args) or torch.zeros(3, 4, 4)
    )
    model = Few()
    trainer(tmp_path, callbacks=[LatentScatter(num_images=30)]).test(model, datamodule=data)
    ((points, labels, names),) = seen
    assert points.shape == (30, 2) and len(labels) == 30
    images, c = data.stored("test")
    z = model.encode(images.float() / 255)
    if latent == 4:
        (share,) = np.linalg.eigvalsh(np.cov(z.T.numpy()))[-1:] / np.cov(z.T.numpy()).trace()
        assert names[0] == f"principal component 1 ({100 * share:.0f} %)"
    else:  # each point is an image's, under that image's label
        for point, label in zip(points[:, :latent], labels, strict=True):
            assert ((z - point).abs().amax(1)[c == label] < 1e-6).any()
    assert "scatter_test" in pictures(tmp_path)


def test_posterior_statistics_have_the_kl_in_parts_and_a_chart(data, tmp_path):
    model = Posterior()
    run = trainer(tmp_path, callbacks=[PosteriorStatistics(num_images=40)], max_epochs=1)
    run.test(model, datamodule=data, verbose=False)
    q = model.q(data.stored("test")[0].float() / 255)
    kl = torch.distributions.kl_divergence(q, Normal(0.0, 1.0)).sum(1).mean()
    names = ("mutual_information", "total_correlation", "dimension_wise_kl")
    assert_close(sum(run.logged_metrics[f"test/{name}"] for name in names), kl)
    assert 0 < run.logged_metrics["test/total_correlation_bound"] < 4 * math.log(8)  # quarters of clothes are alike
    run.fit(model, datamodule=data)
    assert run.logged_metrics["val/active_units"] == 4  # the fifth mean never moves
    assert {"posterior_test", "posterior_epoch0000_step0000004"} <= set(pictures(tmp_path))


def test_the_numbers_do_not_depend_on_the_batches(data_dir, tmp_path):
    logged = []
    for batch_size in (7, 40):
        data = FashionMNIST(data_dir=str(data_dir), batch_size=batch_size)
        run = trainer(tmp_path / str(batch_size), callbacks=[PosteriorStatistics(num_images=20)])
        run.test(Posterior(), datamodule=data, verbose=False)
        logged.append(run.logged_metrics["test/total_correlation"])
    assert_close(logged[0], logged[1])


def test_disentanglement_is_scored_where_factors_are_known(tmp_path):
    """And not by the means of dimensions that say nothing, nor by means where draws are asked for."""

    class Perfect(Stub):
        """Codes are nearly the factors, with deviations; a first dimension is nearly the prior.

        Its mean moves for one image in a thousand only: if it may be named, it is named for every factor.
        """

        def __init__(self, sprites, variance):
            super().__init__()
            self.variance = variance
            self.known = {image.numpy().tobytes(): i for i, image in enumerate(sprites.stored("test")[0])}
            self.factors = sprites.factors.float()

        def q(self, x):
            rows = [self.known[(255 * image).to(torch.uint8).cpu().numpy().tobytes()] for image in x]
            rows = torch.tensor(rows)
            rare, jitter = (rows % 1000 == 0).float(), 0.01 * torch.sin(rows.float())
            variance = torch.tensor([0.96] + [self.variance] * 5)
            mu = torch.cat([rare[:, None], self.factors[rows] + jitter[:, None]], 1)
            return Normal(mu, variance.sqrt().expand(len(x), 6))

    sprites = Sprites(batch_size=200)
    run = trainer(tmp_path, callbacks=[Disentanglement(votes=100, images=20)])
    (sharp,) = run.test(Perfect(sprites, 1e-6), datamodule=sprites, verbose=False)
    assert sharp["test/mig"] > 0.8  # some images are the same under several orientations
    assert sharp["test/factor_vae_score"] > 0.7
    (wide,) = run.test(Perfect(sprites, 0.94), datamodule=sprites, verbose=False)
    assert wide["test/factor_vae_score"] == sharp["test/factor_vae_score"]  # of means
    assert 0.1 < wide["test/mig"] < 0.6  # of draws: two shapes are as far apart as a deviation


def test_disentanglement_needs_factors(data, tmp_path):
    with pytest.raises(TypeError, match=r"needs data that follow `HasFactors`, but FashionMNIST has no `factors`"):
        trainer(tmp_path, callbacks=[Disentanglement()]).test(Posterior(), datamodule=data)


def test_the_distance_of_reconstructions_is_over_all_test_images(data, tmp_path):
    callback = ReconstructionFID(Quarters(), cache_dir=str(tmp_path / "cache"))
    run = trainer(tmp_path, callbacks=[callback])
    run.test(Reconstructor(), datamodule=data, verbose=False)
    x = data.stored("test")[0]
    real, fake = (Gaussian.of(Quarters()(images)) for images in (x, 255 - x))
    expected = torch.tensor(frechet_distance(real, fake))
    assert_close(run.logged_metrics["test/fid_reconstructions_quarters"], expected.float(), rtol=1e-4, atol=0)
    assert "kid_reconstructions_quarters" in "".join(run.logged_metrics)
    assert not any(name in run.logged_metrics for name in ("test/precision", "test/samples_per_second"))
    assert callback.describe_test().startswith("fid_reconstructions_quarters: 40 reconstructions, rounded to 8 bits")


@pytest.mark.parametrize(
    "callback, method",
    [
        (LatentTraversal(), "encode`, `decode"),
        (AttributeDirection(), "encode`, `decode"),
        (LatentScatter(), "encode`, `decode"),
        (PosteriorStatistics(), "q"),
        (Disentanglement(), "q"),
        (ReconstructionFID(Quarters()), "reconstruct"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_without_the_protocol_is_refused_at_the_start(callback, method, data, tmp_path):
    assert isinstance(callback, Callback)
    with pytest.raises(TypeError, match=f"{type(callback).__name__} needs a model .* but Stub has no `{method}`"):
        trainer(tmp_path, callbacks=[callback]).test(Stub(), datamodule=data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LatentTraversal(steps=1),
        lambda: AttributeDirection(steps=()),
        lambda: LatentScatter(num_images=0),
        lambda: PosteriorStatistics(num_images=1),
        lambda: Disentanglement(votes=0),
    ],
)
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()


def test_looking_changes_no_training(data, tmp_path):
    from lit_generative.models.beta_vae import BetaVAE

    states = []
    looking = [LatentTraversal(), AttributeDirection(), LatentScatter(), PosteriorStatistics(num_images=20)]
    looking += [ReconstructionFID(Quarters(), every_n_epochs=1, cache_dir=str(tmp_path / "cache"))]
    for callbacks in ([], looking):
        torch.manual_seed(0)
        model = BetaVAE(hidden=(8,), latent=3)
        trainer(tmp_path / str(len(callbacks)), callbacks=callbacks).fit(model, datamodule=data)
        states.append((model.state_dict(), torch.random.get_rng_state()))
    assert_close(states[0], states[1], atol=0, rtol=0)
    assert len(pictures(tmp_path / "5")) == 8
