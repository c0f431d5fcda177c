"""The FID callback on a model that samples and does nothing else."""

import csv
import math

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from stubs import Quarters, Sampler, Stub, trainer

from callbacks import FID
from datamodules import FashionMNIST
from lit_generative.images import from_uint8
from lit_generative.metrics import Gaussian, frechet_distance


class Copier(Sampler):
    """Draws from the images themselves."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def sample(self, n, c=None):
        return from_uint8(self.images[torch.randint(len(self.images), (n,))])


class Shifting(Sampler):
    """Images of one grey level, which is its only weight."""

    def sample(self, n, c=None):
        return self.net.bias.sigmoid().expand(n, 1, 28, 28) * torch.rand(n, 1, 1, 1)


@pytest.fixture
def data(data_dir):
    return FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32)


@pytest.fixture
def fid(tmp_path):
    def make(**kwargs):
        return FID(**({"extractor": Quarters(), "num_samples": 200, "cache_dir": str(tmp_path / "cache")} | kwargs))

    return make


def run_test(model, data, folder, *callbacks, **kwargs):
    run = trainer(folder, callbacks=list(callbacks), logger=False, **kwargs)
    return run.test(model, datamodule=data, verbose=False)[0]


def test_real_against_real_is_near_zero_and_noise_is_far(data, fid, tmp_path):
    real = data.convert(data.stored("train")[0])
    near = run_test(Copier(real), data, tmp_path / "a", fid(num_samples=2000))
    far = run_test(Sampler(), data, tmp_path / "b", fid())
    scale = float(Gaussian.of(Quarters()(real)).covariance.trace())
    assert 0 <= near["test/fid_quarters"] < 0.02 * scale and far["test/fid_quarters"] > scale
    assert near["test/coverage"] > 0.9 and far["test/coverage"] == 0
    assert abs(near["test/kid_quarters"]) < 0.01 < far["test/kid_quarters"]
    assert near["test/samples_per_second"] > 0


def test_the_number_is_that_of_the_samples_and_all_training_images(data, fid, tmp_path):
    seen = []

    class Recorder(Sampler):
        def sample(self, n, c=None):
            seen.append(super().sample(n))
            return seen[-1]

    found = run_test(Recorder(), data, tmp_path, fid(num_samples=50, batch_size=16))
    assert [len(x) for x in seen] == [16, 16, 16, 2]
    fake = torch.cat(seen).mul(255).round().to(torch.uint8)
    net = Quarters()
    expected = frechet_distance(Gaussian.of(net(data.stored("train")[0])), Gaussian.of(net(fake)))
    assert found["test/fid_quarters"] == pytest.approx(expected, rel=1e-5)


def test_grey_levels_survive_the_way_into_the_metric(data, fid, tmp_path):
    """The same images as samples and as reference: not one of the 256 levels may move."""

    class Levels(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(x.long(), 256).flatten(1, 3).float().mean(1)

    images = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).repeat(2, 1, 1, 1)

    class Each(Sampler):
        def sample(self, n, c=None):
            return from_uint8(images[:n])

    mean, covariance = Gaussian.of(Levels()(images))[1:3]
    np.savez(tmp_path / "real.npz", mu=mean, sigma=covariance)
    callback = fid(extractor=Levels(), reference=str(tmp_path / "real.npz"), num_samples=512, batch_size=512)
    assert run_test(Each(), data, tmp_path, callback)["test/fid_levels"] == pytest.approx(0, abs=1e-6)


def test_real_statistics_are_computed_once_and_a_torn_file_is_replaced(data, fid, tmp_path):
    calls = []

    class Counting(Quarters):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    def run(**kwargs):
        calls.clear()
        found = run_test(Sampler(), data, tmp_path, fid(extractor=Counting(), num_samples=10, **kwargs))
        return found["test/fid_quarters"], sum(calls)

    first, looked = run()
    assert looked == 1 + 96 + 10  # setup, real images, samples
    assert run() == (first, 1 + 10)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"is damaged.*computing them anew"):
        assert run() == (first, looked)
    assert run() == (first, 1 + 10)
    assert run(reference="test")[1] == 1 + 40 + 10
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_cache_key_follows_images_size_extractor_and_split(data, data_dir, fid, tmp_path):
    class Weighted(Quarters):
        def __init__(self, weight):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(weight))

        def forward(self, x):
            return super().forward(x) * self.weight

    class Large(Sampler):
        def sample(self, n, c=None):
            return torch.rand(n, 1, 32, 32)

    def files(callback, data=data, model=None):
        run_test(model or Sampler(), data, tmp_path, callback)
        return len(list((tmp_path / "cache").iterdir()))

    assert files(fid(extractor=Weighted(1.0))) == 1
    assert files(fid(extractor=Weighted(1.0))) == 1
    assert files(fid(extractor=Weighted(2.0))) == 2
    assert files(fid(extractor=Weighted(1.0), reference="test")) == 3
    larger = FashionMNIST(data_dir=str(data_dir), batch_size=16, image_size=32)
    assert files(fid(extractor=Weighted(1.0)), larger, Large()) == 4
    resized = FashionMNIST(data_dir=str(data_dir), batch_size=16, image_size=32, resize="resize")
    assert files(fid(extractor=Weighted(1.0)), resized, Large()) == 5


def test_the_best_checkpoint_can_be_chosen_by_it(data, fid, tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="val/fid_quarters", every_n_epochs=2, filename="{epoch}")
    model = Shifting()
    run = trainer(tmp_path, callbacks=[fid(every_n_epochs=2), best], max_epochs=5, enable_checkpointing=True)
    run.fit(model, datamodule=data)
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        values = [row["val/fid_quarters"] for row in csv.DictReader(file) if row["val/fid_quarters"]]
    assert len(values) == 2 and float(best.best_model_score) == pytest.approx(min(map(float, values)), rel=1e-6)
    choose = ModelCheckpoint(tmp_path / "best", monitor="val/fid_quarters")
    with pytest.raises(ValueError, match=r"every 2 epochs, but .* every 1: set --checkpoint.every_n_epochs 2"):
        trainer(tmp_path, callbacks=[fid(every_n_epochs=2), choose], logger=False, enable_checkpointing=True).fit(
            model, datamodule=data
        )


def test_averaged_weights_are_looked_at(data, fid, tmp_path):
    """Whatever the order of the callbacks: the model that samples is the average in validation."""

    class Recorder(Shifting):
        def sample(self, n, c=None):
            self.seen = float(self.net.bias)
            return super().sample(n)

    for order in (1, -1):
        model = Recorder()
        averaging = WeightAveraging(avg_fn=lambda average, new, n: torch.full_like(average, 7.0))
        trainer(tmp_path, callbacks=[fid(), averaging][::order], max_epochs=1, logger=False).fit(model, datamodule=data)
        assert model.seen == 7


def test_samples_that_are_not_finite_count_as_infinitely_far(data, fid, tmp_path):
    class Broken(Sampler):
        def sample(self, n, c=None):
            return torch.where(torch.arange(n) == 0, math.nan, 0.5)[:, None, None, None].expand(n, 1, 28, 28)

    with pytest.warns(UserWarning, match="2 samples hold NaN"):
        assert run_test(Broken(), data, tmp_path, fid(batch_size=100))["test/fid_quarters"] == math.inf


def test_the_protocol_is_printed_with_the_number(data, fid, tmp_path):
    callback = fid()
    run_test(Sampler(), data, tmp_path, callback)
    text = callback.describe_test()
    assert text.startswith(
        "200 samples, rounded to 8 bits, against 96 train images, 8-bit, not augmented; features: quart"
    )
    assert "200 samples, 96 images" in text


def test_what_cannot_work_is_said_before_training(data, fid, tmp_path, monkeypatch):
    def fit(callback, model=None, **kwargs):
        trainer(tmp_path, callbacks=[callback], logger=False).fit(
            model or Sampler(), **(kwargs or {"datamodule": data})
        )

    with pytest.raises(TypeError, match=r"FID needs a model .* but Stub has no `sample`"):
        fit(fid(), Stub())
    loader = torch.utils.data.DataLoader(torch.zeros(4, 1))
    with pytest.raises(TypeError, match="needs a datamodule that gives its images"):
        fit(fid(), train_dataloaders=loader, val_dataloaders=loader)
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="has 3 features, but quarters gives 4"):
        fit(fid(reference=str(tmp_path / "other.npz")))
    with pytest.warns(UserWarning, match="3 samples are fewer than the 4 features"):
        fit(fid(num_samples=3))
    with pytest.raises(ValueError, match="num_samples starts at 2"):
        FID(num_samples=1)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"could not be downloaded .* weights_path"):
        fit(fid(extractor="inception"))


def test_auto_chooses_the_extractor_of_the_data(data, data_dir, tmp_path):
    callback = FID(num_samples=200, neighbours=0, cache_dir=str(tmp_path))
    assert "test/fid_lenet_fashion_mnist" in run_test(Sampler(), data, tmp_path, callback)
