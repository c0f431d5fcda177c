"""The FID callback on a model that samples and does nothing else."""

import csv
import math
from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from stubs import Copier, Quarters, Sampler, Stub, trainer

from callbacks import FID
from datamodules import FashionMNIST
from lit_generative.images import from_uint8
from lit_generative.metrics.frechet import Gaussian, frechet_distance
from lit_generative.metrics.two_sample import TwoSampleMetric


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


def test_every_measure_is_that_of_its_definition(data, fid, tmp_path):
    """All pairs, one by one: images of four grey quarters, samples of a wider range in two and a narrower in two."""

    def quarters(low, high):
        return (low + (high - low) * torch.rand(96, 1, 2, 2)).byte().repeat_interleave(14, 2).repeat_interleave(14, 3)

    real, fakes = quarters(60, 180), quarters(torch.tensor([20.0, 60]), torch.tensor([220.0, 120]))
    data.stored = lambda split: (real, torch.zeros(96, dtype=torch.int64))

    class Given(Sampler):
        def sample(self, n, c=None):
            return from_uint8(fakes)

    found = run_test(Given(), data, tmp_path, fid(num_samples=96, batch_size=96))
    x, y = (Quarters()(images).double() for images in (fakes, real))

    def distances(a, b):
        return torch.stack([(a - point).square().sum(1).sqrt() for point in b], 1)  # (a, b)

    def radii(points, k):
        return distances(points, points).sort(1).values[:, k]  # the nearest is the point itself

    between = distances(x, y)

    def shares(k):
        return (between <= radii(y, k)).any(1).double().mean(), (radii(x, k) >= between.T).any(1).double().mean()

    assert all(a != b for k in (2, 4) for a, b in zip(shares(k), shares(3), strict=True))  # the number of them matters
    expected = dict(zip(("precision", "recall"), shares(3), strict=True))
    expected["density"] = (between < radii(y, 5)).double().sum() / (5 * 96)
    expected["coverage"] = (between < radii(y, 5)).any(0).double().mean()

    def off_diagonal(a):
        kernel = (a @ a.T / 4 + 1) ** 3
        return (kernel.sum() - kernel.trace()) / (96 * 95)

    expected["kid_quarters"] = off_diagonal(x) + off_diagonal(y) - 2 * ((x @ y.T / 4 + 1) ** 3).mean()
    assert {name: found[f"test/{name}"] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-5
    )
    assert expected["precision"] != expected["recall"] and found["test/kid_quarters_std"] < 1e-9


def test_the_images_that_neighbours_are_sought_among_are_a_fair_part(data, fid, tmp_path):
    """A file may be sorted: its first images are of one kind."""
    halves = [torch.randint(low, low + 60, (48, 1, 28, 28)).byte() for low in (0, 190)]
    data.stored = lambda split: (torch.cat(halves), torch.zeros(96, dtype=torch.int64))
    for half in halves:
        found = run_test(Copier(half), data, tmp_path, fid(num_samples=50, neighbours=20))
        assert found["test/precision"] > 0.5 and 0.2 < found["test/coverage"] < 0.8


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


@pytest.mark.slow
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
    assert looked == 1 + 2 + 96 + 10  # setup, fingerprint, real images, samples
    assert run() == (first, 1 + 2 + 10)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"is damaged.*it is computed again"):
        assert run() == (first, looked)
    assert run() == (first, 1 + 2 + 10)
    assert run(reference="test")[1] == 1 + 2 + 40 + 10
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_cache_key_follows_every_ingredient(data, data_dir, fid, tmp_path, monkeypatch):
    class Weighted(Quarters):
        def __init__(self, weight):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(weight))

        def forward(self, x):
            return super().forward(x) * self.weight

    class Large(Sampler):
        def sample(self, n, c=None):
            return torch.rand(n, 1, 32, 32)

    def files(data=data, model=None, weight=1.0, **kwargs):
        run_test(model or Sampler(), data, tmp_path, fid(extractor=Weighted(weight), **kwargs))
        return len(list((tmp_path / "cache").iterdir()))

    def made(**kwargs):
        return FashionMNIST(data_dir=str(data_dir), batch_size=16, **kwargs)

    assert files() == files() == 1
    assert files(weight=2.0) == 2
    assert files(reference="test") == 3
    assert files(made(image_size=32), Large()) == 4
    assert files(made(image_size=32, resize="resize"), Large()) == 5
    assert files(neighbours=50) == 6
    other = made()
    images, labels = other.stored("train")
    changed = images.clone()
    changed[-1, 0, -1, -1] ^= 1  # one bit of one pixel
    other.stored = lambda split: (changed, labels)
    assert files(other) == 7
    other.stored = lambda split: (images, labels)
    other.name, other.prepare_data = "Another", lambda: None
    assert files(other) == 8
    monkeypatch.setattr(Weighted, "preparation", "another", raising=False)
    assert files() == 9
    monkeypatch.setattr(Weighted, "name", "another")
    assert files() == 10
    monkeypatch.setattr("lit_generative.metrics.reference_statistics.version", lambda name: "0")
    assert files() == 11


def test_the_best_checkpoint_can_be_chosen_by_it(data, fid, tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="val/fid_quarters", every_n_epochs=2, filename="{epoch}")
    model = Shifting()
    run = trainer(tmp_path, callbacks=[fid(every_n_epochs=2), best], max_epochs=5, enable_checkpointing=True)
    run.fit(model, datamodule=data)
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        values = [row["val/fid_quarters"] for row in csv.DictReader(file) if row["val/fid_quarters"]]
    assert len(values) == 2 and float(best.best_model_score) == pytest.approx(min(map(float, values)), rel=1e-6)
    choose = ModelCheckpoint(tmp_path / "best", monitor="val/fid_quarters")
    with pytest.raises(ValueError, match=r"every 2 epochs: set --checkpoint.every_n_epochs 2"):
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

    with pytest.warns(UserWarning, match="2 samples have NaN"):
        assert run_test(Broken(), data, tmp_path, fid(batch_size=100))["test/fid_quarters"] == math.inf


class Shift(TwoSampleMetric):
    reported: ClassVar = {"shift_{}": ".3f"}
    in_validation = True

    def measure(self, fake, real, x, y):
        return {"shift_{}": float((fake.mean - real.mean).norm())}

    def describe(self, m, n):
        return ""


@pytest.mark.parametrize("broken", [False, True])
def test_a_further_metric_can_choose_checkpoints_even_of_broken_samples(broken, data, fid, tmp_path):
    class Model(Sampler):
        def sample(self, n, c=None):
            return super().sample(n) / (0.0 if broken else 1.0)

    best = ModelCheckpoint(tmp_path / "best", monitor="val/shift_quarters")
    run = trainer(tmp_path, callbacks=[fid(metrics=[Shift()]), best], max_epochs=1, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="200 samples have") if broken else nullcontext():
        run.fit(Model(), datamodule=data)
    assert run.callback_metrics["val/shift_quarters"].isnan() == broken and best.best_model_path


def test_the_protocol_is_printed_with_the_number(data, fid, tmp_path):
    callback = fid()
    run_test(Sampler(), data, tmp_path, callback)
    text = callback.describe_test()
    assert text.startswith(
        "fid_quarters: 200 samples, rounded to 8 bits, against 96 train images, 8-bit, not augmented; features: quart"
    )
    assert "200 samples, 96 images" in text
    assert "noise: seed 0, another in validation than in test, 128 at a time" in text


def refuse(*_args, **_kwargs):
    raise OSError("no network here")


def test_what_cannot_work_is_said_before_training(data, fid, tmp_path, monkeypatch):
    def fit(callback, model=None, **kwargs):
        trainer(tmp_path, callbacks=[callback], logger=False).fit(
            model or Sampler(), **(kwargs or {"datamodule": data})
        )

    with pytest.raises(TypeError, match=r"FID needs a model .* but Stub has no `sample`"):
        fit(fid(), Stub())
    loader = torch.utils.data.DataLoader(torch.zeros(4, 1))
    with pytest.raises(TypeError, match="needs data that follow `HasImages`, but the run has no datamodule: give"):
        fit(fid(), train_dataloaders=loader, val_dataloaders=loader)
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="has 3 features, but quarters gives 4"):
        fit(fid(reference=str(tmp_path / "other.npz")))
    with pytest.warns(UserWarning, match="3 samples are fewer than the 4 features"):
        fit(fid(num_samples=3))
    with pytest.raises(ValueError, match="num_samples must be >= 2"):
        FID(num_samples=1)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(ValueError, match=r"could not be downloaded .* weights_path"):
        fit(fid(extractor="inception"))


def test_auto_chooses_the_extractor_of_the_data(data, data_dir, tmp_path):
    callback = FID(num_samples=200, neighbours=0, cache_dir=str(tmp_path))
    assert "test/fid_lenet_fashion_mnist" in run_test(Sampler(), data, tmp_path, callback)


def test_a_callback_that_is_used_again_knows_its_new_data(data, data_dir, fid, tmp_path):
    callback, dark = fid(), FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32)
    stored = dark.stored
    dark.stored = lambda split: (stored(split)[0] // 4, stored(split)[1])
    first = run_test(Sampler(), data, tmp_path, callback)
    second = run_test(Sampler(), dark, tmp_path, callback)
    assert second == pytest.approx(
        run_test(Sampler(), dark, tmp_path, fid()) | {"test/samples_per_second": second["test/samples_per_second"]}
    )
    assert first["test/fid_quarters"] != second["test/fid_quarters"]


def test_two_extractors_stand_beside_one_another(data, fid, tmp_path):
    class Halves(Quarters):
        name = "halves"

        def forward(self, x):
            return super().forward(x)[:, :2]

    both = run_test(Sampler(), data, tmp_path, fid(), fid(extractor=Halves()))
    one = run_test(Sampler(), data, tmp_path, fid())
    for name in ("fid_quarters", "kid_quarters", "precision", "recall", "density", "coverage"):
        assert both[f"test/{name}"] == one[f"test/{name}"]
    assert both["test/fid_halves"] > 0
    # a second stage of the same Trainer knows again whose turn it is
    run = trainer(tmp_path, callbacks=[fid(), fid(extractor=Halves())], logger=False)
    run.test(Sampler(), data, verbose=False)
    assert "test/recall" in run.test(Sampler(), data, verbose=False)[0]
    with pytest.raises(ValueError, match="two FID callbacks have the extractor quarters"):
        run_test(Sampler(), data, tmp_path, fid(), fid())


def test_neighbouring_seeds_share_no_samples(data, fid, tmp_path):
    seen = []

    class Recorder(Sampler):
        def sample(self, n, c=None):
            seen.append(super().sample(n).flatten(1))
            return seen[-1].view(n, 1, 28, 28)

    for seed in (0, 1, 1):
        run_test(Recorder(), data, tmp_path, fid(seed=seed, num_samples=32, batch_size=16))
    a, b, c = (torch.cat(seen[i : i + 2]) for i in (0, 2, 4))
    assert torch.equal(b, c) and torch.cdist(a, b).min() > 1


def test_statistics_of_another_extractor_are_refused(data, fid, tmp_path):
    run_test(Sampler(), data, tmp_path, fid())
    (path,) = (tmp_path / "cache").iterdir()

    class Other(Quarters):
        name = "other"

    with pytest.raises(ValueError, match="features of quarters, not of other"):
        run_test(Sampler(), data, tmp_path, fid(extractor=Other(), reference=str(path)))
    again = run_test(Sampler(), data, tmp_path, fid(reference=str(path)))
    assert again["test/recall"] == run_test(Sampler(), data, tmp_path, fid())["test/recall"]


def test_a_reference_of_another_resize_is_refused_before_training(data, fid, tmp_path):
    class Resizing(Quarters):
        preparation = "bilinear to 28x28"

    class Otherwise(Quarters):
        preparation = "bicubic to 28x28"

    mean, covariance = Gaussian.of(Quarters()(data.stored("train")[0]))[1:3]
    np.savez(tmp_path / "theirs.npz", mu=mean, sigma=covariance)
    given = {"reference": str(tmp_path / "theirs.npz")}
    with pytest.raises(ValueError, match="does not say how its images were resized; quarters takes bilinear to 28x28"):
        run_test(Sampler(), data, tmp_path, fid(extractor=Resizing(), **given))
    trusting = fid(extractor=Resizing(), trust_reference=True, **given)
    again = run_test(Sampler(), data, tmp_path, trusting)["test/fid_quarters"]
    assert again == pytest.approx(run_test(Sampler(), data, tmp_path, fid(extractor=Resizing()))["test/fid_quarters"])
    assert "of a resize that was taken on trust" in trusting.describe_test()
    (made,) = (tmp_path / "cache").iterdir()
    with pytest.raises(ValueError, match=r"'bilinear to 28x28'.*, not .*'bicubic to 28x28'"):
        run_test(Sampler(), data, tmp_path, fid(extractor=Otherwise(), reference=str(made), trust_reference=True))


def test_without_strictness_it_is_left_out_with_a_line(data, fid, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    found = run_test(Sampler(), data, tmp_path, fid(extractor="inception", strict=False))
    assert "test/fid_inception" not in found and "no Fréchet distance: the weights of Inception-v3" in caplog.text
    run_test(Stub(), data, tmp_path, fid(strict=False))
    assert "Stub has no `sample`" in caplog.text
