import math

import pytest
import torch
from torch.testing import assert_close

from lit_generative.likelihoods import (
    LIKELIHOODS,
    bits_per_dim,
    in_bits,
    log_mean_exp,
    nan_to_neg_inf,
    standard_normal,
)

CDF = {"logistic": torch.sigmoid, "gaussian": torch.special.ndtr}


def masses(likelihood, h):
    """Log-mass of every level of one pixel under parameters ``h`` (N, P): (N, levels)."""
    cls = LIKELIHOODS[likelihood]
    x = torch.linspace(0, 1, cls.num_levels, dtype=h.dtype).view(1, -1, 1, 1, 1)
    return cls(h[:, None, :, None, None]).log_prob(x)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masses_of_all_levels_sum_to_one(name, dtype):
    h = 4 * torch.randn(500, LIKELIHOODS[name].parameters, dtype=dtype, generator=torch.Generator().manual_seed(0))
    log_mass = masses(name, h)
    assert (log_mass <= 0).all() and log_mass.isfinite().all()
    total = torch.logsumexp(log_mass, 1)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    assert_close(total, torch.zeros_like(total), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", CDF)
def test_mass_is_the_difference_of_the_cumulative_distribution(name):
    location, log_scale = torch.tensor(0.43).double(), torch.tensor(-2.7).double()
    log_mass = masses(name, torch.stack([location - 0.5, log_scale + 2])[None])[0]
    edges = (torch.arange(257, dtype=torch.float64) - 0.5) / 255
    cumulative = CDF[name]((edges - location) / log_scale.exp())
    cumulative[0], cumulative[-1] = 0, 1
    assert_close(log_mass.exp(), cumulative.diff(), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", CDF)
def test_the_narrowest_bin_holds_what_it_does_in_pixelcnn(name):
    """Their scale is not below e^-7 for pixels in [-1, 1], whose bins are 2/255 wide; ours are half as wide."""
    h = torch.tensor([[100 / 255 - 0.5, -50.0]], dtype=torch.float64)
    half = torch.tensor(math.exp(7) / 255, dtype=torch.float64)
    beside = 1 - masses(name, h)[0, 100].exp()  # 0.027 of a logistic, 2e-5 of a Gaussian
    assert_close(beside, 2 * CDF[name](-half), atol=0, rtol=1e-9)


@pytest.mark.parametrize("name", CDF)
def test_a_distribution_at_a_location_and_scale_has_them(name):
    location = torch.tensor([0.2, 1.3, -0.1], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 2, 1, 1)
    at = LIKELIHOODS[name].at(location, torch.tensor(0.2, dtype=torch.float64))
    assert_close(at.mean, location.clamp(0, 1))
    x = torch.tensor(30 / 255, dtype=torch.float64)
    low, high = (CDF[name]((x + side / 510 - location) / 0.2) for side in (-1, 1))
    assert_close(at.log_prob(x.expand(3, 2, 1, 1)), (high - low).log().sum((1, 2, 3)))


@pytest.mark.parametrize("name", CDF)
def test_the_widest_distribution_is_seven_times_as_wide_as_its_levels(name):
    widest = masses(name, torch.tensor([[0.0, 50.0]], dtype=torch.float64))[0]
    assert_close(widest[0].exp(), CDF[name](torch.tensor((1 / 510 - 0.5) * math.exp(-2), dtype=torch.float64)))


@pytest.mark.parametrize("name", CDF)
def test_gradients_agree_with_finite_differences_in_the_tails(name):
    h = torch.tensor([[-0.9, -2.0], [0.1, 0.5], [1.4, -1.0]]).double().requires_grad_()
    torch.autograd.gradcheck(lambda h: masses(name, h), h)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_stay_finite_far_from_the_data(name):
    h = torch.tensor([[-60.0, -40.0], [60.0, -40.0], [0.0, 30.0], [60.0, 30.0]])[:, : LIKELIHOODS[name].parameters]
    h = h.clone().requires_grad_()
    masses(name, h).sum().backward()
    assert h.grad.isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("log_scale", [0.3, -2.5])  # 47 levels wide, and 3, where half a level is much
def test_samples_follow_the_masses(name, log_scale):
    torch.manual_seed(0)
    h = torch.tensor([[0.2, log_scale]])[:, : LIKELIHOODS[name].parameters]
    n, levels = 200_000, LIKELIHOODS[name].num_levels
    x = LIKELIHOODS[name](h.view(1, -1, 1, 1).expand(n, -1, -1, -1)).sample().flatten()
    counts = torch.bincount(x.mul(levels - 1).round().long(), minlength=levels)
    expected = n * masses(name, h)[0].double().exp()
    error = (counts - expected) / expected.clamp(min=1).sqrt()
    assert error.abs().max() < 4.5 and x.unique().numel() <= levels


def test_bernoulli_is_the_binary_cross_entropy():
    x, logits = torch.rand(3, 1, 4, 4).round().double(), torch.randn(3, 1, 4, 4).double()
    reference = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    assert_close(LIKELIHOODS["bernoulli"](logits).log_prob(x), reference)


def test_log_prob_broadcasts_over_draws_and_sums_pixels():
    x, h = torch.rand(5, 3, 4, 4), torch.randn(7, 5, 6, 4, 4)
    cls = LIKELIHOODS["logistic"]
    log_prob = cls(h).log_prob(x)
    assert log_prob.shape == (7, 5)
    assert_close(log_prob[6, 4], cls(h[6, 4]).log_prob(x[4]))


def test_half_precision_outputs_are_summed_in_float32():
    assert LIKELIHOODS["bernoulli"](torch.zeros(1, 1, 64, 64).bfloat16()).log_prob(torch.zeros(1, 1, 64, 64)) == (
        pytest.approx(-4096 * math.log(2), rel=1e-6)
    )


def test_uniform_images_cost_eight_bits():
    assert_close(bits_per_dim(torch.tensor([-3072 * math.log(256)]).double(), 3072), torch.tensor([8.0]).double())


def test_only_binary_pixels_are_not_counted_in_bits():
    assert [in_bits(levels) for levels in (2, 3, 256)] == [False, True, True]


def test_the_standard_normal_is_torchs():
    z = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()).log_prob(z)
    assert_close(standard_normal(z), expected)


def test_what_is_no_log_density_is_impossible():
    log_p = torch.tensor([-3.0, math.nan, math.inf, -math.inf])
    assert nan_to_neg_inf(log_p).tolist() == [-3.0, -math.inf, -math.inf, -math.inf]


def test_log_mean_exp_of_large_numbers():
    x = torch.tensor([[1000.0, 1000.0 + math.log(3)]])
    assert_close(log_mean_exp(x, 1), torch.tensor([1000 + math.log(2)]))
