"""Measures of memorisation: what planted copies do to them, and what the callback logs."""

import math

import pytest
import torch
from scipy.stats import mannwhitneyu
from stubs import Copier, Quarters, Sampler, trainer

from callbacks import Memorization
from datamodules import FashionMNIST
from lit_generative.metrics.memorization import authentic_share, data_copying, nearest, rank_sum_score


@pytest.fixture
def drawn():
    """Training, test and fresh images of one law in 8 dimensions."""
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    return x[:2000], x[2000:3000], x[3000:]


def test_the_nearest_of_others_and_the_next():
    x, others = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [3.0, 4.0], [0.0, 3.0]])
    distance, index = nearest(x, others)
    assert distance.tolist() == [1.0, 0.0] and index.tolist() == [0, 1]
    distance, index = nearest(x, others, k=2)
    assert distance.tolist() == pytest.approx([3.0, 10**0.5]) and index.tolist() == [2, 2]


def test_rank_sums_are_those_of_scipy(drawn):
    x, y = drawn[0][:50, 0] + 0.2, drawn[1][:80, 0]
    u, p = mannwhitneyu(x.numpy(), y.numpy(), use_continuity=False, method="asymptotic")
    z = rank_sum_score(x, y)
    assert z == pytest.approx((u - 50 * 80 / 2) / (50 * 80 * 131 / 12) ** 0.5)
    assert 2 * torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(-abs(z))).item() == pytest.approx(p, rel=1e-4)


def test_an_authentic_sample_is_further_away_than_training_images_are_from_one_another():
    train = torch.tensor([[0.0], [1.0], [5.0]])  # nearest to one another: 1, 1 and 4
    samples = torch.tensor([[0.5], [-1.5], [6.0], [5.0]])  # distances 0.5, 1.5, 1 and 0
    assert authentic_share(samples, train) == 0.25


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_planted_copies_are_not_authentic(drawn, share):
    train, _, fresh = drawn
    copies = round(share * len(fresh))
    planted = torch.cat([train[:copies], fresh[copies:]])
    rest = authentic_share(fresh[copies:], train) if copies < len(fresh) else 0.0
    assert authentic_share(planted, train) == pytest.approx((1 - share) * rest, abs=1e-9)


def test_copies_are_told_from_fresh_images(drawn):
    train, test, fresh = drawn
    half = len(fresh) // 2
    assert abs(data_copying(fresh, test, train)) < 2  # standard deviations
    assert data_copying(torch.cat([train[:half], fresh[half:]]), test, train) < -3
    assert data_copying(train[:1000], test, train) < data_copying(torch.cat([train[:half], fresh[half:]]), test, train)
    assert data_copying(2 * fresh, test, train) > 3  # far from everything


def test_cells_with_too_few_images_do_not_count(drawn):
    train, test, fresh = drawn
    assert torch.isnan(torch.tensor(data_copying(fresh, test, train, least=1001)))


def test_a_model_that_copies_is_found_out(data_dir, tmp_path):
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32)
    callback = Memorization(Quarters(), num_samples=100, cells=1, cache_dir=str(tmp_path / "cache"))
    model = Copier(data.convert(data.stored("train")[0]))
    results = trainer(tmp_path, callbacks=[callback], logger=False).test(model, datamodule=data, verbose=False)[0]
    assert results["test/authentic"] == 0 and results["test/data_copying"] < -3
    own = {"test/authentic", "test/data_copying", f"test/train_test_gap_{callback.name}"}
    assert {name for name in results if "nll" not in name} == own  # and no distance, which is of `FID`
    assert "C_T in 1 clusters" in callback.describe_test() and "test images" in callback.describe_test()


class Broken(Sampler):
    """Its images are NaN."""

    def sample(self, n, c=None):
        return torch.full((n, 1, 28, 28), torch.nan)


def test_samples_that_are_not_finite_have_no_numbers(data_dir, tmp_path):
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32)
    callback = Memorization(Quarters(), num_samples=100, cells=1, cache_dir=str(tmp_path / "cache"))
    run = trainer(tmp_path, callbacks=[callback], logger=False)
    with pytest.warns(UserWarning, match="100 samples have NaN or infinite values: no authentic, data_copying"):
        results = run.test(Broken(), datamodule=data, verbose=False)[0]
    assert [math.isnan(value) for name, value in results.items() if "nll" not in name] == [True] * 3


@pytest.mark.parametrize("fixed", ["reference", "every_n_epochs", "neighbours", "metrics"])
def test_what_it_decides_itself_cannot_be_given(fixed):
    with pytest.raises(TypeError, match=fixed):
        Memorization(**{fixed: 1})
