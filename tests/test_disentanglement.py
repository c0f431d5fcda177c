"""Parts of the KL of Gaussians that are known, and the scores of codes that are perfect, constant or mixed."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from datamodules import Sprites
from datamodules.sprites import FACTORS
from lit_generative.metrics.disentanglement import (
    factor_vae_score,
    heaviest_tree,
    kl_decomposition,
    mutual_information_gap,
    pairwise_information,
    total_correlation_bound,
)


def posteriors(n, rho=0.0, spread=1.0, sigma=0.5):
    """Means of a correlated Gaussian, one deviation: the aggregate posterior is a Gaussian too."""
    a, b = torch.randn(2, n, dtype=torch.float64)
    mu = spread * torch.stack([a, rho * a + math.sqrt(1 - rho**2) * b], 1)
    return Normal(mu, torch.full_like(mu, sigma))


def exact(rho, spread, sigma):
    """The three parts for infinitely many images; margins have variance v, and correlation r."""
    v = spread**2 + sigma**2
    r = rho * spread**2 / v
    tc = -0.5 * math.log(1 - r**2)
    dimension_wise = 2 * 0.5 * (v - 1 - math.log(v))
    entropy = 0.5 * 2 * math.log(2 * math.pi * math.e) + math.log(v) - tc
    conditional = 0.5 * 2 * math.log(2 * math.pi * math.e * sigma**2)
    return {"mutual_information": entropy - conditional, "total_correlation": tc, "dimension_wise_kl": dimension_wise}


@pytest.mark.parametrize("rho, spread, sigma", [(0.0, 1.0, 0.5), (0.9, 1.0, 0.5), (0.5, 2.0, 1.0), (0.0, 0.0, 1.0)])
def test_each_part_is_right_on_gaussians(rho, spread, sigma):
    torch.manual_seed(0)
    q = posteriors(2000, rho, spread, sigma)
    parts = kl_decomposition(q, q.sample(), 2000)
    for name, value in exact(rho, spread, sigma).items():
        assert_close(float(parts[name]), value, atol=0.05, rtol=0)


def test_the_parts_sum_to_the_kl():
    torch.manual_seed(0)
    q = posteriors(300, 0.7, 1.3, 0.2)
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(1).mean()
    for count in (300, 5000):
        assert_close(torch.stack(list(kl_decomposition(q, q.sample(), count).values())).sum(), kl.double())


def test_the_own_posterior_weighs_one_in_count_and_the_others_the_rest():
    """Two equal posteriors and two lone ones, of 30 images: every density of the mixture is one weight times a peak."""
    mu = torch.tensor([[0, 0], [0, 0], [0, 1000], [1000, 2000]], dtype=torch.float64)
    q = Normal(mu, torch.ones_like(mu))
    z = mu + 1  # where the log density of a Gaussian is its mean, minus the entropy
    parts = kl_decomposition(q, z, 30)
    own, two, three = 1 / 30, 1 / 30 + 29 / 30 / 3, 1 / 30 + 2 * 29 / 30 / 3  # of 1, 2 and 3 posteriors at that peak
    joint = 2 * math.log(two) + 2 * math.log(own)
    margins = 3 * math.log(three) + math.log(own) + 2 * math.log(two) + 2 * math.log(own)
    assert_close(float(parts["mutual_information"]), -joint / 4)
    assert_close(float(parts["total_correlation"]), (joint - margins) / 4)


def test_mutual_information_of_posteriors_far_apart_is_that_of_their_numbers():
    mu = 1000.0 * torch.arange(50, dtype=torch.float64)[:, None]
    q = Normal(mu, torch.ones_like(mu))
    assert_close(float(kl_decomposition(q, q.sample(), 50)["mutual_information"]), math.log(50), atol=0.2, rtol=0)


def test_mutual_information_may_exceed_that_of_the_posteriors_at_hand():
    """As many as log(count), where naive weights would give log(M)."""
    mu = 1000.0 * torch.arange(50, dtype=torch.float64)[:, None]
    q = Normal(mu, torch.ones_like(mu))
    assert_close(float(kl_decomposition(q, mu + 1, 5000)["mutual_information"]), math.log(5000))


def test_chunks_change_nothing(monkeypatch):
    q = posteriors(64)
    z = q.sample()
    whole = kl_decomposition(q, z, 100)
    monkeypatch.setattr("lit_generative.metrics.disentanglement.PAIRS", 64 * 2 * 5)
    assert_close(kl_decomposition(q, z, 100), whole)
    with pytest.raises(ValueError, match=r"must be in 2\.\.63 \(count\), got 64"):
        kl_decomposition(q, z, 63)


@pytest.mark.parametrize("n", [500, 20_000])
def test_independent_draws_have_no_total_correlation(n):
    torch.manual_seed(0)
    assert abs(float(total_correlation_bound(torch.randn(n, 8).exp()))) < 30 / n


def test_a_tree_of_gaussians_is_bounded_by_its_total_correlation():
    """A chain z_1 - z_2 - z_3 and a dimension of its own: the total correlation is the sum over the chain's links."""
    torch.manual_seed(0)
    z, rho = torch.randn(100_000, 4, dtype=torch.float64), 0.9
    for i in (1, 2):
        z[:, i] = rho * z[:, i - 1] + math.sqrt(1 - rho**2) * z[:, i]
    exact = -math.log(1 - rho**2)  # of two links
    order = torch.tensor([1, 3, 2, 0])
    assert exact - 0.1 < float(total_correlation_bound(z[:, order], bins=32)) < exact
    coarse, fine = (float(total_correlation_bound(z, bins)) for bins in (8, 32))
    assert 0.75 * exact < coarse < fine
    assert_close(float(total_correlation_bound(z[:, order].sinh(), bins=32)), fine, atol=0.01, rtol=0)  # of ranks only


def test_the_heaviest_tree_of_four():
    """Edges 0-1 (5), 1-3 (4) and 2-3 (2): neither 0-3 (3), which closes a circle, nor a dimension's own entropy."""
    weights = torch.tensor([[9, 5, 1, 3], [5, 9, 0, 4], [1, 0, 9, 2], [3, 4, 2, 9.0]])
    assert heaviest_tree(weights) == 11


def test_pairs_without_correlation_are_seen():
    """A ring: what two latents of an angle are."""
    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(20_000)
    ring = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(20_000, 2)
    assert abs(torch.corrcoef(ring.T)[0, 1]) < 0.02 and float(total_correlation_bound(ring)) > 0.5


def test_the_information_of_a_table_of_numbers():
    """Two bins each: (0, 0) in 3 of 8, (0, 1) in 1, (1, 0) in 1, (1, 1) in 3."""
    a, b = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7.0]), torch.tensor([0, 1, 2, 4, 3, 5, 6, 7.0])
    expected = 6 / 8 * math.log(3 / 8 / (1 / 4)) + 2 / 8 * math.log(1 / 8 / (1 / 4))
    found = pairwise_information(torch.stack([a, b], 1), 2)
    assert_close(found, torch.tensor([[math.log(2), expected], [expected, math.log(2)]], dtype=torch.float64))


@pytest.fixture(scope="module")
def factors():
    return Sprites().factors


def test_perfect_codes_score_1_in_any_order_scale_and_sign(factors):
    codes = torch.cat([torch.zeros(len(factors), 3), -3.0 * factors.float().flip(1) + 5], 1)
    assert mutual_information_gap(codes, factors) > 0.9
    assert factor_vae_score(codes, factors) > 0.9


def test_the_votes_see_dimensions_relative_to_their_spread(factors):
    """Codes that are nearly the factors, in units far apart; the same with all in one unit."""
    torch.manual_seed(0)
    codes = factors + 0.3 * torch.randn(len(factors), 5)
    codes /= codes.std(0)
    units = torch.tensor([1.0, 1e4, 1e-3, 30.0, 0.1])
    assert factor_vae_score(codes * units, factors, votes=100) == factor_vae_score(codes, factors, votes=100) > 0.8


def test_a_factor_of_one_value_tells_nothing(factors):
    few = factors[factors[:, 0] == 1]
    assert mutual_information_gap(few.float(), few) > 0.9
    assert math.isnan(mutual_information_gap(few.float(), few[:, :1]))


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_constant_codes_score_0(factors, value):
    codes = torch.full((len(factors), 10), value)
    assert mutual_information_gap(codes, factors) < 0.2
    assert factor_vae_score(codes, factors) < 0.2


def test_noise_scores_by_chance_and_mixtures_in_between(factors):
    torch.manual_seed(0)
    noise = torch.randn(len(factors), 10)
    assert mutual_information_gap(noise, factors) < 0.02
    assert factor_vae_score(noise, factors) < 0.35  # one in five, and what a majority gains
    rotation = torch.linalg.qr(torch.randn(5, 5)).Q
    standard = (factors.float() - factors.float().mean(0)) / factors.float().std(0)
    mixed = standard @ rotation
    assert mutual_information_gap(mixed, factors) < 0.4 < factor_vae_score(mixed, factors) < 0.95


def test_two_dimensions_that_share_a_factor_close_the_gap(factors):
    codes = factors.float()
    twice = torch.cat([codes, codes], 1)
    assert mutual_information_gap(twice, factors) < 0.01
    assert factor_vae_score(twice, factors) > 0.9  # the metric does not ask for one dimension each


def test_inactive_dimensions_cannot_be_named(factors):
    codes = torch.cat([factors.float(), 1e-3 * torch.randn(len(factors), 1)], 1)
    active = torch.tensor([False] * 5 + [True])
    assert factor_vae_score(codes, factors, active=active) < 0.35
    assert factor_vae_score(codes, factors, active=torch.zeros(6, dtype=torch.bool)) == 0


def test_the_score_follows_its_seed(factors):
    torch.manual_seed(0)
    codes = factors + 8 * torch.randn(len(factors), 5)
    a, b, c = (factor_vae_score(codes, factors, votes=50, seed=seed) for seed in (1, 1, 2))
    assert a == b != c


# -- sprites ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sprites():
    data = Sprites(binarize="static", batch_size=100)
    data.setup()
    return data


def test_sprites_are_all_combinations_each_drawn_whole(sprites, factors):
    images, labels = sprites.stored("test")
    assert len(images) == len(factors) == math.prod(FACTORS.values()) == len(factors.unique(dim=0))
    assert set(images.unique().tolist()) == {0, 255} and torch.equal(labels, factors[:, 0])
    border = images.clone()
    border[:, :, 1:-1, 1:-1] = 0
    assert border.sum() == 0 and images.flatten(1).sum(1).min() >= 4 * 255
    assert torch.equal(sprites._sets["test"][0], images)  # binarising changes nothing
    assert sprites.num_levels == 2 and len(sprites._sets["val"][0]) == 1728


def test_the_factors_of_a_sprite_are_what_it_shows(sprites, factors):
    images, mass = sprites.stored("test")[0].float(), None
    mass = images.sum((1, 2, 3))
    place = torch.arange(28.0)
    x, y = ((images.sum(dims) * place).sum(1) / mass for dims in ((1, 2), (1, 3)))
    for centre, column in ((x, 3), (y, 4)):
        error = centre - 8 - factors[:, column]
        assert error.abs().max() < 1.5  # a heart's middle is not its centre of mass
    for shape in range(3):
        areas = [float(mass[(factors[:, 0] == shape) & (factors[:, 1] == size)].mean()) for size in range(4)]
        assert areas == sorted(areas) and areas[0] < 0.5 * areas[3]
    straight, turned = ((factors[:, 1:] == torch.tensor([3, way, 5, 5])).all(1) for way in (0, 2))
    assert not torch.equal(images[straight], images[turned])
