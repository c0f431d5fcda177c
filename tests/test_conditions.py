"""What is asked of a class-conditional model, and with which labels and noise."""

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from stubs import Quarters, Reconstructor, Sampler, Stub, trainer

from callbacks import (
    FID,
    DenoisingAnimation,
    LatentInterpolation,
    NearestNeighbours,
    OODScores,
    PosteriorStatistics,
    ReconstructionFID,
    SampleGrid,
    TranslationScores,
)
from datamodules import MNIST, FashionMNIST
from lit_generative.models.ddpm import DDPM
from lit_generative.models.realnvp import RealNVP
from lit_generative.models.vae import VAE
from lit_generative.utils.rng import forked_rng, mixed_seed

pytestmark = pytest.mark.slow

NONE = 10  # the label that a DDPM of ten classes takes for none


class Conditional(Stub):
    """Records the labels and the guidance of all that it draws."""

    classes, steps = 10, 2

    def __init__(self):
        super().__init__()
        self.labels, self.guidances = [], set()

    def sample(self, n, c=None, guidance=0.0):
        self.labels.append(c)
        self.guidances.add(guidance)
        return torch.rand(n, 1, 28, 28)

    def interpolate(self, n, steps, c=None):
        self.labels.append(c)
        return torch.rand(n * steps, 1, 28, 28)

    def noised(self, x, t):
        return x

    def denoising_trajectory(self, n, every, c=None):
        self.labels.append(c)
        return torch.rand(3, n, 1, 28, 28)

    def losses_at(self, x, t, c=None):
        return t.float()


@pytest.fixture
def data(data_dir):
    """Three quarters of the training images are of class 1, a quarter of class 4, none of another."""
    made = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32)
    stored = made.stored
    made.stored = lambda split: (stored(split)[0], torch.where(torch.arange(len(stored(split)[1])) % 4 == 0, 4, 1))
    return made


def fid(tmp_path, **options):
    return FID(**({"extractor": Quarters(), "num_samples": 200, "cache_dir": str(tmp_path / "cache")} | options))


def run_test(model, data, folder, *callbacks):
    return trainer(folder, callbacks=list(callbacks), logger=False).test(model, datamodule=data, verbose=False)[0]


# -- labels ----------------------------------------------------------------------------------------


def test_labels_follow_the_frequencies_of_the_training_images(data, tmp_path):
    model = Conditional()
    callback = fid(tmp_path, num_samples=2000)
    run_test(model, data, tmp_path, callback)
    labels = torch.cat(model.labels)
    assert labels.dtype == torch.int64 and set(labels.tolist()) == {1, 4}
    # 2000 draws: the standard deviation of the share is 0.0097
    assert float((labels == 1).double().mean()) == pytest.approx(0.75, abs=0.035)
    assert not torch.equal(model.labels[0], model.labels[1])  # each batch draws its own
    assert model.guidances == {0.0}
    assert "labels drawn from the class frequencies of the training images, no guidance" in callback.describe_test()


@pytest.mark.parametrize(
    "callback",
    [NearestNeighbours(n=8, k=1), LatentInterpolation(n=8, steps=2), DenoisingAnimation(n=8, every=1)],
    ids=lambda callback: type(callback).__name__,
)
def test_pictures_of_samples_have_labels(callback, data, tmp_path):
    model = Conditional()
    run_test(model, data, tmp_path, callback)
    (labels,) = model.labels
    assert labels.shape == (8,) and set(labels.tolist()) <= {1, 4}
    assert "no guidance" in callback.describe_test()


def test_a_grid_has_a_row_for_each_class(data, tmp_path):
    model, callback = Conditional(), SampleGrid(n=8, columns=3)
    run_test(model, data, tmp_path, callback)
    (labels,) = model.labels
    assert labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert callback.describe_test() == "no guidance"


def test_guidance_reaches_the_samples_and_the_protocol(data, tmp_path):
    model, callback = Conditional(), fid(tmp_path, guidance=2.5)
    run_test(model, data, tmp_path, callback)
    assert model.guidances == {2.5} and "guidance 2.5, which nll does not include" in callback.describe_test()
    model = Conditional()
    run_test(model, data, tmp_path, SampleGrid(guidance=1.5))
    assert model.guidances == {1.5}


def test_what_cannot_be_asked_of_a_model_is_said_at_the_start(data, tmp_path):
    class Unguided(Conditional):
        def sample(self, n, c=None):
            raise AssertionError

    def refused(callback, model, data, error, match):
        run = trainer(tmp_path, callbacks=[callback], logger=False)
        with pytest.raises(error, match=match):
            run.fit(model, datamodule=data)
        assert run.global_step == 0

    for make in (lambda guidance: fid(tmp_path, guidance=guidance), lambda guidance: SampleGrid(guidance=guidance)):
        refused(make(1.0), Sampler(), data, ValueError, "Sampler cannot be guided towards a class: leave guidance at 0")
        refused(make(1.0), Unguided(), data, ValueError, "Unguided cannot be guided")
        refused(make(-1.0), Conditional(), data, ValueError, "guidance must be >= 0, got -1")
    none = DDPM(channels=(8, 8), groups=4)  # its `sample` has the option, and it knows no classes
    refused(fid(tmp_path, guidance=1.0), none, data, ValueError, "DDPM cannot be guided")
    few = Conditional()
    few.classes = 4
    refused(SampleGrid(), few, data, ValueError, "Conditional has 4 classes, but the data have 5")
    loader = torch.utils.data.DataLoader(torch.zeros(4, 1))
    with pytest.raises(TypeError, match=r"SampleGrid draws labels for Conditional, .* NoneType does not give"):
        trainer(tmp_path, callbacks=[SampleGrid()], logger=False).fit(Conditional(), loader, loader)


def test_a_model_without_classes_is_sampled_as_ever(data, tmp_path):
    """No label is drawn, and in test the noise of a seed is the one that it was before there were labels."""
    seen = []

    class Recorder(Sampler):
        def sample(self, n, c=None):
            assert c is None
            seen.append(super().sample(n))
            return seen[-1]

    callback = fid(tmp_path, num_samples=32, batch_size=16)
    run_test(Recorder(), data, tmp_path, callback)
    for i, x in enumerate(seen):
        with forked_rng(mixed_seed(0, i)):
            assert torch.equal(x, torch.rand(16, 1, 28, 28))
    assert "label" not in callback.describe_test()


class Watched(DDPM):
    """A small DDPM of ten classes that records which labels its network is asked with, and by whom."""

    def __init__(self):
        super().__init__(channels=(8, 8), groups=4, steps=4, sampling_steps=2, elbo_terms=2, classes=10)
        self.asked, self.user = {}, ""
        self.denoiser.register_forward_pre_hook(
            lambda _, inputs: self.asked.setdefault(self.user, []).extend(inputs[2].tolist())
        )

    def sample(self, *args, **kwargs):
        self.user = "samples"
        return super().sample(*args, **kwargs)

    def log_prob(self, *args, **kwargs):
        self.user = "ood"
        return super().log_prob(*args, **kwargs)

    def ood_scores(self, x):
        self.user = "ood"
        return super().ood_scores(x)

    def test_step(self, batch, batch_idx):
        self.user = "nll"
        return super().test_step(batch, batch_idx)


def test_likelihood_and_samples_of_one_row_are_of_the_same_model(data, tmp_path):
    """The labelled one; the unlabelled only where there can be no label, and that is said."""
    model = Watched()
    callbacks = [
        fid(tmp_path, num_samples=20),
        OODScores([MNIST()], num_images=10, resamples=2, synthetic=False),
    ]
    run_test(model, data, tmp_path, *callbacks)
    assert set(model.asked["nll"]) == set(model.asked["samples"]) == {1, 4}
    assert set(model.asked["ood"]) == {NONE}
    assert "given the class" in model.describe_test() and "without labels" in callbacks[1].describe_test()
    model.asked.clear()
    run_test(model, data, tmp_path, fid(tmp_path, num_samples=20, guidance=1.0))
    assert set(model.asked["samples"]) == {1, 4, NONE}  # guidance asks both


def test_ways_and_films_of_a_diffusion_keep_their_labels():
    model = Watched()
    model.interpolate(2, 3, torch.tensor([7, 5]))
    model.denoising_trajectory(2, 2, torch.tensor([7, 5]))
    asked = model.asked[""]
    assert asked[:6] == [7, 7, 7, 5, 5, 5] and set(asked) == {7, 5} and asked[-2:] == [7, 5]


# -- noise: no checkpoint is chosen by that with which it is tested --------------------------------


def test_samples_of_validations_are_the_same_and_none_of_them_the_tests(data, tmp_path):
    seen = []

    class Recorder(Sampler):
        def sample(self, n, c=None):
            seen.append(super().sample(n).flatten(1))
            return seen[-1].view(n, 1, 28, 28)

    callback = fid(tmp_path, num_samples=32, batch_size=16)
    run = trainer(tmp_path, callbacks=[callback], logger=False)
    run.fit(Recorder(), datamodule=data)
    run.test(Recorder(), datamodule=data, verbose=False)
    run.validate(Recorder(), datamodule=data, verbose=False)
    first, second, test, alone = (torch.cat(seen[i : i + 2]) for i in range(0, 8, 2))
    assert torch.equal(first, second) and torch.equal(first, alone)
    assert torch.cdist(first, test).min() > 1
    assert "another in validation than in test" in callback.describe_test()


@pytest.mark.parametrize(
    ("model", "methods"),
    [
        (VAE(hidden=(4,), latent=2, test_k=(1,)), ("q",)),
        (RealNVP(stack="fully_connected", couplings=2, width=4, depth=1, test_k=1), ("log_weights",)),
        (DDPM(channels=(8, 8), groups=4, steps=4, sampling_steps=2, elbo_terms=2), ("losses_at", "bound")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_draw_others_in_test_than_in_validation(model, methods, data, tmp_path, monkeypatch):
    seeds = []

    def recording(method):
        def recorded(*args, **kwargs):
            seeds.append(torch.initial_seed())
            return method(*args, **kwargs)

        return recorded

    for name in methods:
        monkeypatch.setattr(model, name, recording(getattr(model, name)))

    def draw(stage):
        seeds.clear()
        getattr(trainer(tmp_path, logger=False), stage)(model, datamodule=data, verbose=False)
        return list(dict.fromkeys(seeds))

    val, test = draw("validate"), draw("test")
    assert len(val) == 2 and len(test) == 3  # one seed for each batch
    assert not set(val) & set(test) and draw("validate") == val and draw("test") == test


def test_callbacks_that_look_at_every_image_draw_others_in_test(data, tmp_path):
    seeds = []

    class Recorder(Reconstructor):
        def reconstruct(self, x, c=None):
            seeds.append(torch.initial_seed())
            return super().reconstruct(x)

        def translate(self, c):
            seeds.append(torch.initial_seed())
            return torch.rand(len(c), 1, 28, 28)

        def q(self, x):
            seeds.append(torch.initial_seed())
            return torch.distributions.Normal(torch.zeros(len(x), 2), 1.0)

    distance = ReconstructionFID(Quarters(), every_n_epochs=1, cache_dir=str(tmp_path))
    for callback in (distance, TranslationScores(lpips=False), PosteriorStatistics()):
        seen = []
        for stage in ("validate", "test"):
            seeds.clear()
            run = trainer(tmp_path, callbacks=[callback], logger=False)
            getattr(run, stage)(Recorder(), datamodule=data, verbose=False)
            seen.append(set(seeds))
        assert [len(s) for s in seen] == [2, 3] and not seen[0] & seen[1]


def test_nothing_is_chosen_by_test_images(data, tmp_path):
    class Both(Sampler, Reconstructor):
        pass

    def refused(callback, metric, match):
        run = trainer(tmp_path, callbacks=[callback, EarlyStopping(metric)], logger=False)
        with pytest.raises(ValueError, match=match):
            run.fit(Both(), datamodule=data)

    refused(fid(tmp_path, reference="test"), "val/fid_quarters", "EarlyStopping must not monitor .* to test images")
    reconstructions = ReconstructionFID(Quarters(), every_n_epochs=1, cache_dir=str(tmp_path))
    refused(reconstructions, "val/fid_reconstructions_quarters", "set reference of ReconstructionFID to train")
    run = trainer(tmp_path, callbacks=[fid(tmp_path), EarlyStopping("val/fid_quarters")], logger=False)
    run.fit(Sampler(), datamodule=data)  # by training images it may
