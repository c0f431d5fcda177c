"""Scores of what looks out of distribution, and how well they tell."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lit_generative.metrics import ood
from lit_generative.metrics.density_of_states import density_of_states, log_kernel_density


@pytest.mark.parametrize("ties", [False, True])
def test_measures_are_those_of_scikit_learn(ties):
    metrics = pytest.importorskip("sklearn.metrics")
    inside, outside = torch.randn(313).double(), 0.8 + torch.randn(171).double()
    if ties:
        inside, outside = inside.mul(3).round(), outside.mul(3).round()
    measured = {name: value[0] for name, value in ood.detection(inside, outside, resamples=2).items()}
    scores = torch.cat([inside, outside]).numpy()
    positive = np.r_[np.zeros(313), np.ones(171)]
    assert measured["auroc"] == pytest.approx(metrics.roc_auc_score(positive, scores))
    assert measured["aupr"] == pytest.approx(metrics.average_precision_score(positive, scores))
    fpr, tpr, _ = metrics.roc_curve(1 - positive, -scores, drop_intermediate=False)
    assert measured["fpr95"] == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_the_sign_and_the_extremes():
    near, far = torch.randn(200), torch.randn(200) + 20
    best, worst = ood.detection(near, far, 10), ood.detection(far, near, 10)
    assert (best["auroc"][0], best["aupr"][0], best["fpr95"][0]) == (1, 1, 0)
    assert worst["auroc"][0] == 0 and worst["fpr95"][0] == 1  # printed as it is, never turned round


def test_intervals_hold_the_value_and_narrow_with_the_number_of_images():
    def width(n):
        value, low, high = ood.detection(torch.randn(n), torch.randn(n) + 1)["auroc"]
        assert low < value < high
        return high - low

    # the standard error of AUROC at 0.76 and n = m = 500 is about 0.015 (Hanley & McNeil, 1982)
    assert width(500) == pytest.approx(2 * 1.96 * 0.0151, rel=0.1) and width(2000) < 0.7 * width(500)


def test_intervals_are_of_the_seed_and_of_all_resamples():
    inside, outside = torch.randn(30), torch.randn(30) + 1
    found = [ood.detection(inside, outside, n, seed) for n, seed in ((50, 0), (50, 0), (50, 1), (60, 0))]
    assert found[0] == found[1] and found[0] != found[2] and found[0] != found[3]
    assert all(math.isfinite(bound) for bounds in found[0].values() for bound in bounds)  # the highest may not be drawn


def test_the_threshold_is_the_lowest_that_accepts_95_percent():
    inside, outside = torch.arange(20.0), torch.tensor([18.5])  # 19 of 20 are at or below 18
    assert ood.detection(inside, outside, 2)["fpr95"][0] == 0


def test_scores_are_compared_in_float64():
    one = torch.ones(4).double()
    assert ood.detection(one, one + 1e-9, 2)["auroc"][0] == ood.detection(one - 1e-9, one, 2)["auroc"][0] == 1


def test_nan_counts_against_the_score():
    inside, outside, nan = torch.zeros(4), torch.ones(4), torch.tensor([math.nan])
    assert ood.detection(torch.cat([inside, nan]), outside, 2)["auroc"][0] == pytest.approx(4 / 5)
    assert ood.detection(inside, torch.cat([outside, nan]), 2)["auroc"][0] == pytest.approx(4 / 5)
    infinite = torch.tensor([math.inf])  # log p = -inf is an answer
    assert ood.detection(inside, torch.cat([outside, infinite]), 2)["auroc"][0] == 1


def test_scores_by_hand():
    log_prob, train, background = torch.tensor([-10.0, -4.0]), torch.tensor([-5.0, -7.0]), torch.tensor([-12.0, -12.0])
    scores = ood.scores(log_prob, train, torch.tensor([3.0, 3.0]), background)
    assert {name: value.tolist() for name, value in scores.items()} == {
        "likelihood": [10, 4],
        "typicality": [4, 2],
        "complexity": [7, 1],
        "ratio": [-2, -8],
    }
    broken = torch.cat([train, torch.tensor([-math.inf, math.nan])])  # they have no say in the mean
    assert ood.scores(log_prob, broken, torch.zeros(2))["typicality"].tolist() == [4, 2]


def test_typicality_tells_what_likelihood_cannot():
    """A point at the mode of a Gaussian is more likely than any sample of it, and not typical."""
    d = 100
    normal = torch.distributions.Normal(0.0, 1.0)
    log_prob = normal.log_prob(torch.randn(500, d)).sum(-1)
    train = normal.log_prob(torch.randn(500, d)).sum(-1)
    mode = normal.log_prob(torch.zeros(50, d)).sum(-1)
    scores, others = (ood.scores(v, train, torch.zeros(len(v))) for v in (log_prob, mode))
    assert ood.detection(scores["likelihood"], others["likelihood"], 2)["auroc"][0] == 0
    assert ood.detection(scores["typicality"], others["typicality"], 2)["auroc"][0] == 1


def test_code_lengths_are_lossless_and_grow_with_complexity():
    noise = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    length = ood.code_length(torch.cat([noise, torch.zeros_like(noise)]))
    assert (length[:5] > 784 * math.log(256)).all()  # no code makes noise shorter
    assert (length[5:] < 784 * math.log(256) / 10).all()
    colour = ood.code_length(noise.expand(-1, 3, -1, -1))
    assert colour.shape == (5,) and (colour < 3 * length[:5]).all()


def test_the_code_is_the_shortest_of_three_lossless_ones():
    """Each of them is needed: it is the shortest of one of the images. All give the image back."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    waves = torch.nn.functional.interpolate(255 * torch.rand(1, 1, 8, 8), size=(64, 64), mode="bicubic")[0, 0]
    images = {"WEBP": torch.randint(0, 256, (64, 64)), "JPEG2000": waves.clamp(0, 255), "PNG": x * y // 16 % 256}
    plain = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}

    def encoded(image, code, options):
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, code, **options)
        with Image.open(file) as again:
            assert torch.equal(torch.from_numpy(np.array(again.convert("L"))), image), code
        return len(file.getvalue())

    assert ood.CODES.keys() == plain.keys()
    for shortest, image in images.items():
        image = image.to(torch.uint8)
        sizes = {code: encoded(image, code, options) for code, options in plain.items()}
        best = {code: encoded(image, code, options) for code, options in ood.CODES.items()}
        length = float(ood.code_length(image[None, None])) / math.log(256)  # bytes
        assert length == pytest.approx(best[shortest], abs=1e-9) and length <= sizes[shortest]
        assert all(best[code] > length for code in plain if code != shortest)


def test_code_lengths_are_read_where_the_same_images_were_coded_before(tmp_path, monkeypatch):
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first = ood.stored_code_length(images, tmp_path / "new")
    torch.testing.assert_close(first, ood.code_length(images), rtol=0, atol=0)
    (file,) = (tmp_path / "new").iterdir()
    monkeypatch.setattr(ood, "code_length", lambda images: torch.full((len(images),), -1.0).double())
    assert torch.equal(ood.stored_code_length(images, tmp_path / "new"), first)
    assert ood.stored_code_length(images.flip(0), tmp_path / "new").tolist() == [-1] * 3
    monkeypatch.setattr(ood, "encoder_versions", lambda: {"pillow": "another"})
    assert ood.stored_code_length(images, tmp_path / "new").tolist() == [-1] * 3
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:-9])  # a damaged file
    assert torch.equal(ood.stored_code_length(images, tmp_path / "new"), first)


def test_a_cache_that_cannot_be_written_costs_no_length(tmp_path):
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="choose another cache_dir"):
        lengths = ood.stored_code_length(images, tmp_path / "file")
    assert torch.equal(lengths, ood.code_length(images))


def test_simple_images():
    test = torch.randint(0, 256, (512, 1, 4, 4), dtype=torch.uint8)
    sets = ood.simple_images(test, seed=0)
    assert all(x.shape == test.shape and x.dtype == torch.uint8 for x in sets.values())
    assert sets["constant"].flatten(1).float().std(1).max() == 0 and len(sets["constant"].unique()) == 256
    assert_close(sets["inverted"].int() + test.int(), torch.full_like(test, 255).int())
    assert torch.equal(sets["hflip"].flip(-1), test) and torch.equal(sets["vflip"].flip(-2), test)
    assert torch.equal(sets["uniform"], ood.simple_images(test, seed=0)["uniform"])
    assert not torch.equal(sets["uniform"], ood.simple_images(test, seed=1)["uniform"])
    assert len(sets["uniform"].unique()) == 256


def test_a_score_of_several_numbers_is_the_mean_of_its_z_scores():
    """Two scales of which one is a thousand times the other count alike; what is one number stays."""
    train, far = torch.randn(500, 2).double() * torch.tensor([1.0, 1e3]) + 5, torch.tensor([[7.0, 2005.0]]).double()
    sets = {
        "train": ood.spread({"errors": train, "kl": train[:, 0]}),
        "far": ood.spread({"errors": far, "kl": far[:, 0]}),
    }
    assert list(sets["far"]) == ["errors@0", "errors@1", "kl"]
    joined = ood.gathered(sets)
    assert_close(joined["train"]["errors"].mean(), torch.tensor(0.0).double(), atol=1e-9, rtol=0)
    assert_close(joined["far"]["errors"], torch.tensor([2.0]).double(), atol=0.3, rtol=0)
    assert torch.equal(joined["far"]["kl"], far[:, 0])
    still = {"train": ood.spread({"errors": torch.ones(5, 2)}), "far": ood.spread({"errors": torch.ones(1, 2)})}
    assert ood.gathered(still)["far"]["errors"].tolist() == [0]  # a scale that does not vary says nothing


def test_a_kernel_density_is_that_of_scipy_and_finite_far_away():
    stats = pytest.importorskip("scipy.stats")
    sample, values = torch.randn(300).double(), torch.linspace(-4, 4, 50).double()
    expected = stats.gaussian_kde(sample.numpy())(values.numpy())  # Scott's bandwidth
    assert_close(log_kernel_density(values, sample).exp(), torch.tensor(expected), rtol=1e-6, atol=1e-9)
    far = log_kernel_density(torch.tensor([1e3, 1e4, math.inf, math.nan]), sample)
    assert -math.inf < far[1] < far[0] < -1e4 and (far[2:] == -math.inf).all()


def test_the_density_of_states_finds_what_is_too_likely_and_what_only_one_statistic_betrays():
    torch.manual_seed(0)
    held_out = {"likelihood": torch.randn(2000), "complexity": torch.randn(2000)}
    inside = density_of_states({name: torch.randn(1000) for name in held_out}, held_out)
    for likelihood, complexity in ((-6.0, 0.0), (6.0, 0.0), (0.0, 6.0)):  # the first: more likely than any
        far = {"likelihood": torch.randn(1000) * 0.3 + likelihood, "complexity": torch.randn(1000) * 0.3 + complexity}
        assert ood.detection(inside, density_of_states(far, held_out), 10)["auroc"][0] > 0.99
    # the sum of the two statistics' log densities, which are those of N(0, 1) and its bandwidth
    variance = 1 + 2000 ** (-2 / 5)
    at = density_of_states({name: torch.zeros(1) for name in held_out}, held_out)
    assert_close(at, torch.tensor([math.log(2 * math.pi * variance)]).double(), atol=0.1, rtol=0)
