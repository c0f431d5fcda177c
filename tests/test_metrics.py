import prdc
import pytest
import torch
from torch.testing import assert_close

from lit_generative.metrics.aggregation import Moments, MomentsByName
from lit_generative.metrics.frechet import Features, Gaussian, frechet_distance
from lit_generative.metrics.two_sample import density_coverage, kernel_distance, precision_recall


def test_moments_do_not_depend_on_the_batches():
    x = 90 + torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)).double()
    moments = Moments(3)
    for part in x.split([1, 400, 599]):
        moments.update(part)
    mean, variance, error, count = moments.compute()
    assert_close(mean, x.mean(0))
    assert_close(variance, x.var(0))
    assert_close(error, x.std(0) / 1000**0.5)
    assert count.tolist() == [1000] * 3


def test_moments_are_float64_for_float32_values_and_not_in_checkpoints():
    moments = Moments(1)
    moments.update(torch.full((3, 1), 16777217.0))
    assert moments.compute().shape == (4, 1)  # torchmetrics would squeeze a single number
    assert moments.compute().dtype == torch.float64
    assert not moments.state_dict()


def test_moments_by_name_are_those_of_the_names_and_begin_anew():
    moments, x = MomentsByName(), torch.rand(9, 2)
    for part in x.split(4):
        moments.update({"a": part[:, 0], "b": part[:, 1]})
    with pytest.raises(ValueError, match=r"the same numbers: \('a', 'b'\), then \('b',\)"):
        moments.update({"b": x[:, 0]})
    found = moments.compute(x.device)
    assert list(found) == ["a", "b"] and found["a"].images == found["b"].images == 9
    assert_close(torch.stack([found[name].mean for name in "ab"]), x.double().mean(0))
    assert_close(torch.stack([found[name].stderr for name in "ab"]), x.double().std(0) / 3)
    assert moments.compute(x.device) == {}
    moments.update({"c": x[:, 1]})
    assert list(moments.compute(x.device)) == ["c"]


def moments_of(x):
    moments = Moments(x.shape[1])
    moments.update(x)
    return moments.compute()


def test_moments_square_float32_values_in_float64():
    x = 4097 + torch.arange(4.0)[:, None]  # 4097^2 needs 25 bits
    assert_close(moments_of(x)[1], x.double().var(0), rtol=1e-9, atol=0)


def test_moments_of_what_does_not_vary_and_of_what_is_infinite():
    assert moments_of(torch.tensor([[3.0]])).flatten().tolist() == [3, 0, 0, 1]
    constant = torch.rand(1, 500, dtype=torch.float64).expand(7, -1)  # rounding makes some differences negative
    _, variance, error, _ = moments_of(constant)
    assert (variance >= 0).all() and variance.max() < 1e-15 and error.isfinite().all()
    assert moments_of(torch.tensor([[1.0], [torch.inf]]))[1:3, 0].tolist() == [torch.inf, torch.inf]


@pytest.mark.parametrize("make", [lambda: Moments(2), lambda: Features(2, keep=4)], ids=["moments", "features"])
def test_a_metric_that_a_test_has_reset_can_be_trained_on(make):
    metric, rest = make(), [torch.arange(3)]
    with torch.inference_mode():
        metric.update(torch.ones(3, 2), *rest[: isinstance(metric, Features)])
        metric.reset()
    metric.update(torch.ones(3, 2), *rest[: isinstance(metric, Features)])
    assert float(metric.count) == 3


def gaussian(mean, covariance):
    mean = torch.as_tensor(mean, dtype=torch.float64)
    # as pytorch-fid writes it: neither the number nor the vectors are known
    return Gaussian(0, mean, torch.as_tensor(covariance, dtype=torch.float64), torch.empty(0, len(mean)))


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q


def test_frechet_distance_of_gaussians_whose_covariances_commute_has_a_closed_form():
    d, q = 40, rotation(40)
    a, b, shift = torch.rand(d).double() + 0.1, torch.rand(d).double() + 0.1, torch.randn(d).double()
    p_1 = gaussian(torch.zeros(d), q @ torch.diag(a) @ q.T)
    p_2 = gaussian(shift, q @ torch.diag(b) @ q.T)
    expected = float(shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(p_1, p_2) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(p_2, p_1) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(p_1, p_1) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_agrees_with_the_square_root_of_a_matrix():
    scipy = pytest.importorskip("scipy.linalg")
    x, y = torch.randn(500, 100).double() @ rotation(100), 1.5 * torch.randn(700, 100).double() + 0.1
    p, q = Gaussian.of(x @ torch.randn(100, 100).double()), Gaussian.of(y)
    root = scipy.sqrtm((p.covariance @ q.covariance).numpy())
    expected = (p.mean - q.mean).square().sum() + p.covariance.trace() + q.covariance.trace() - 2 * root.trace().real
    assert frechet_distance(p, q) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("with_rows", [True, False])
def test_frechet_distance_of_fewer_samples_than_features(with_rows):
    """Rows along r orthogonal directions, one by one: the covariances commute and are singular."""
    d, q = 60, rotation(60)

    def features(scale):  # mean 0, covariance diag(scale^2 / (2 r - 1) * 2) in the rotated axes
        rows = torch.diag(scale)
        return torch.cat([rows, -rows]) @ q[: len(scale)]

    a, b = torch.rand(20).double() + 0.5, torch.rand(20).double() + 0.5
    p_1, p_2 = Gaussian.of(features(a)), Gaussian.of(features(b))
    assert p_1.root() is not None and len(p_1.root()) < d
    if not with_rows:
        p_1, p_2 = (p._replace(rows=p.rows[:0]) for p in (p_1, p_2))
    expected = float((a - b).square().sum() * 2 / 39)
    assert frechet_distance(p_1, p_2) == pytest.approx(expected, abs=1e-6)
    full = gaussian(torch.zeros(d), torch.eye(d))  # singular against regular
    expected = float((a * (2 / 39) ** 0.5 - 1).square().sum() + d - 20)
    assert frechet_distance(p_1, full) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(full, p_1) == pytest.approx(expected, rel=1e-6)


def test_some_of_the_vectors_do_not_stand_for_all():
    x, y = torch.randn(100, 8).double(), torch.randn(90, 8).double() * 2 + 1
    p, q = Gaussian.of(x), Gaussian.of(y)
    for kept in (2, 8, 50):
        some = p._replace(rows=x[:kept]), q._replace(rows=y[:kept])
        assert frechet_distance(*some) == pytest.approx(frechet_distance(p, q), rel=1e-9)


def test_the_vectors_of_few_images_give_the_distance_that_their_moments_give():
    p, q = Gaussian.of(torch.randn(20, 40).double() + 3), Gaussian.of(2 * torch.randn(25, 40).double() - 1)
    with_vectors, without = (p, q), (p._replace(rows=p.rows[:0]), q._replace(rows=q.rows[:0]))
    assert frechet_distance(*with_vectors) == pytest.approx(frechet_distance(*without), rel=1e-6)
    assert frechet_distance(p, without[1]) == pytest.approx(frechet_distance(*without), rel=1e-6)
    assert frechet_distance(without[0], q) == pytest.approx(frechet_distance(*without), rel=1e-6)


def test_features_of_another_extractor_are_refused():
    with pytest.raises(ValueError, match="as many dimensions in both sets, got 2 and 3"):
        frechet_distance(gaussian(torch.zeros(2), torch.eye(2)), gaussian(torch.zeros(3), torch.eye(3)))


def test_features_do_not_depend_on_batches_or_their_order():
    x = 5 + torch.randn(300, 8)
    features = Features(8, keep=50)
    for index in torch.randperm(300).split([1, 200, 99]):
        features.update(x[index], index)
    p = features.compute()
    assert p.n == 300 and torch.equal(p.rows, x[:50])
    assert_close(p.mean, x.double().mean(0))
    assert_close(p.covariance, torch.cov(x.double().T))


def measures(fake, real):
    return {
        "kid": kernel_distance(fake, real, subsets=4)[0],
        **dict(zip(("precision", "recall"), precision_recall(fake, real), strict=True)),
        **dict(zip(("density", "coverage"), density_coverage(fake, real), strict=True)),
    }


def test_neighbourhood_metrics_of_one_law_against_itself():
    m = measures(torch.randn(600, 4), torch.randn(600, 4))
    assert abs(m["kid"]) < 0.02
    assert (
        m["precision"] > 0.9 and m["recall"] > 0.9 and m["coverage"] > 0.9 and m["density"] == pytest.approx(1, abs=0.1)
    )
    x = torch.randn(300, 4)
    m = measures(x, x)
    assert m["precision"] == m["recall"] == m["coverage"] == 1


def test_neighbourhood_metrics_of_disjoint_sets():
    m = measures(torch.randn(300, 4) + 50, torch.randn(300, 4))
    assert m["precision"] == m["recall"] == m["density"] == m["coverage"] == 0 and m["kid"] > 1


def test_neighbourhood_metrics_see_a_collapsed_mode():
    """Two far modes of which the samples know one: all samples are right, half of the images are missed."""
    real = torch.randn(600, 4) + 30 * (torch.arange(600) % 2)[:, None]
    m = measures(torch.randn(600, 4), real)
    assert m["precision"] > 0.9 and m["density"] > 0.9
    assert m["recall"] == pytest.approx(0.5, abs=0.05) and 0.3 < m["coverage"] <= 0.5


def test_a_common_offset_of_large_features_changes_no_neighbour():
    """Distances ignore it; the features are of 2^-6, which float32 holds beside 4096."""
    fake, real = (torch.randn(400, 8).mul(64).round() / 64 + shift for shift in (0.25, 0.0))
    near = precision_recall(fake, real), density_coverage(fake, real)
    assert 0.5 < near[0][0] < 1 and 0.5 < near[0][1] < 1 and 0.5 < near[1][0] < 1.2 and 0.5 < near[1][1] < 1
    for offset in (1024.0, 4096.0):
        assert (precision_recall(fake + offset, real + offset), density_coverage(fake + offset, real + offset)) == near


@pytest.mark.parametrize("offset", [0.0, 4096.0])
def test_kid_is_the_unbiased_estimate_of_its_paper(offset):
    """All vectors are in every subset: one number, without chance. Degree 3, gamma 1/d (Binkowski et al., 2018)."""
    x, y = (torch.randn(40, 8).mul(64).round() / 64 + shift + offset for shift in (0.5, 0.0))
    value, deviation = kernel_distance(x, y, subsets=3)

    def kernel(a, b):
        return sum(a[:, None, i].double() * b[None, :, i].double() / 8 for i in range(8)).add(1).pow(3)

    off_diagonal = [(kernel(a, a).sum() - kernel(a, a).trace()) / (40 * 39) for a in (x, y)]
    expected = float(sum(off_diagonal) - 2 * kernel(x, y).mean())
    assert value == pytest.approx(expected, rel=1e-4 if offset else 1e-9) and expected > 0.5
    assert deviation == pytest.approx(0, abs=1e-4 * expected)
    some = [kernel_distance(x, y, subsets=20, size=10, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2] and some[0][1] > 1e-3 * expected


def test_density_and_coverage_count_balls():
    """Images on a line at 0..9: balls of k = 1 have radius 1, without their border."""
    real, fake = torch.arange(10.0)[:, None], torch.tensor([[0.25], [4.5], [100.0]])
    density, coverage = density_coverage(fake, real, k=1)
    # 0.25 lies in the balls of 0 and 1, 4.5 in those of 4 and 5, 100 in none
    assert density == pytest.approx(4 / 3) and coverage == pytest.approx(0.4)
    # 2 lies on the borders of the balls of 1 and 3
    assert density_coverage(torch.tensor([[2.0]]), real, k=1) == (1, pytest.approx(0.1))
    # more samples than are looked at together
    many = torch.cat([torch.full((2000, 1), 0.25), torch.full((500, 1), 4.5)])
    assert density_coverage(many, real, k=1) == (pytest.approx(2), pytest.approx(0.4))


@pytest.mark.parametrize(("shift", "k"), [(0.0, 3), (0.5, 5), (1.5, 3)])
def test_precision_recall_density_and_coverage_are_those_of_the_authors_package(shift, k, capsys):
    real, fake = torch.randn(400, 6), torch.randn(300, 6) * 0.8 + shift
    theirs = prdc.compute_prdc(real.numpy(), fake.numpy(), k)
    ours = (*precision_recall(fake, real, k), *density_coverage(fake, real, k))
    assert ours == pytest.approx([theirs[name] for name in ("precision", "recall", "density", "coverage")], abs=1e-6)


def test_precision_and_recall_take_the_neighbours_that_they_are_told():
    real, fake = torch.arange(10.0)[:, None], torch.tensor([[-1.5], [4.5], [20.0], [21.0]])
    # the ball of 0 reaches 1 with one neighbour, 2 with two; those of 20 and 21 hold no real image
    assert precision_recall(fake, real, k=1)[0] == 0.25 and precision_recall(fake, real, k=2)[0] == 0.5


def test_kid_of_sets_of_two_sizes():
    few, many = torch.randn(20, 4), torch.randn(50, 4)
    assert kernel_distance(few, many, subsets=2)[1] >= 0 and kernel_distance(many, few, subsets=2)[1] >= 0
