"""Gaussian diffusion: schedules, kernels, the bound, samplers, each on data whose law is known."""

import math

import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from lit_generative.diffusion.elbo import decoder_scale, prior_kl, strata, variational_bound
from lit_generative.diffusion.samplers import ddim, ddim_inverse, dpm_solver
from lit_generative.diffusion.schedules import (
    SCHEDULES,
    DiscreteSchedule,
    logsnr_timesteps,
    posterior,
    power_timesteps,
)
from lit_generative.models.ddpm import ancestral

F64 = torch.float64


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param](1000)


def column(schedule, t, x):
    return schedule.at(t, x)[0].square()


class Normal1D:
    """Data N(m, s^2): E[x_0|x_t] and log p(x_0) in closed form."""

    m, s = 0.3, 0.5

    def __init__(self, schedule):
        self.schedule = schedule

    def denoise(self, x, t):
        a = column(self.schedule, t, x)
        gain = a.sqrt() * self.s**2 / (a * self.s**2 + 1 - a)
        return self.m + gain * (x - a.sqrt() * self.m)

    def draw(self, n):
        return self.m + self.s * torch.randn(n, 1, dtype=F64)


class TwoPoints:
    """Data at -1 and 0.5 with probabilities 0.3 and 0.7."""

    def __init__(self, schedule):
        self.schedule = schedule

    def denoise(self, x, t):
        a = column(self.schedule, t, x)
        points, log_p = torch.tensor([-1.0, 0.5], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64).log()
        log_w = log_p - (x[..., None] - a.sqrt()[..., None] * points).square() / (2 * (1 - a))[..., None]
        return (log_w.softmax(-1) * points).sum(-1)


# -- schedules -------------------------------------------------------------------------------------


def test_schedules_run_from_data_to_noise(schedule):
    a = schedule.alpha_bar
    assert a.dtype == F64 and a[0] == 1 and (a.diff() < 0).all() and 0 <= a[-1] < 1e-4
    assert schedule.steps == 1000 and not schedule.state_dict()


def test_linear_is_the_papers():
    beta = 1 - SCHEDULES["linear"](1000).alpha_bar[1:] / SCHEDULES["linear"](1000).alpha_bar[:-1]
    assert_close(beta[[0, -1]], torch.tensor([1e-4, 0.02], dtype=F64))
    assert_close(beta.diff(), torch.full((999,), (0.02 - 1e-4) / 999, dtype=F64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", [100, 4000])
def test_a_schedule_of_another_length_ends_in_as_much_noise(steps):
    for make in SCHEDULES.values():
        a = make(steps).alpha_bar[-1]
        assert 0 < a < 1e-4  # T = 4000 does not underflow


def test_cosine_bounds_beta_where_all_signal_is_gone():
    a = SCHEDULES["cosine"](1000).alpha_bar
    assert_close(a[-1] / a[-2], torch.tensor(0.001, dtype=F64))
    half = a[500] / (math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2)
    assert_close(half, torch.tensor(1.0, dtype=F64))


@pytest.mark.parametrize("beta", [torch.tensor([0.1, 1.0]), torch.tensor([0.1]), torch.tensor([0.0, 0.1])])
def test_what_is_no_schedule_is_refused(beta):
    with pytest.raises(ValueError, match="between 0 and 1"):
        DiscreteSchedule(beta)


# -- kernels ---------------------------------------------------------------------------------------


def test_one_step_kernels_compose_to_the_marginal():
    """x_t of x_0 = 1 by t single steps: the mean and variance of q(x_t|x_0)."""
    schedule = SCHEDULES["linear"](50)
    beta = 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
    mean, variance = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    for t, b in enumerate(beta, 1):
        mean, variance = (1 - b).sqrt() * mean, (1 - b) * variance + b
        at, zero, one = torch.tensor([t]), torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
        assert_close(schedule.diffuse(one, at, zero)[0, 0], mean)
        assert_close(schedule.diffuse(zero, at, one)[0, 0].square(), variance)


@pytest.mark.parametrize(("s", "t"), [(0, 1), (1, 2), (499, 500), (250, 900), (999, 1000)])
def test_posterior_by_bayes_rule(schedule, s, t):
    """q(x_s|x_t, x_0) is proportional to q(x_t|x_s) q(x_s|x_0): compared on a grid of x_s."""
    a_s, a_t = schedule.alpha_bar[s], schedule.alpha_bar[t]
    c_0, c_t, v, beta = posterior(*((a.sqrt(), (1 - a).sqrt()) for a in (a_s, a_t)))
    assert_close(beta, 1 - a_t / a_s)
    x_0, x_t = 0.7, -0.4
    if s == 0:
        assert_close(torch.stack([c_0, c_t, v]), torch.tensor([1.0, 0.0, 0.0], dtype=F64))
        return
    mean = c_0 * x_0 + c_t * x_t
    x_s = mean + v.sqrt() * torch.linspace(-3, 3, 101, dtype=F64)
    alpha = a_t / a_s
    joint = -(x_t - alpha.sqrt() * x_s).square() / (2 * (1 - alpha)) - (x_s - a_s.sqrt() * x_0).square() / (
        2 * (1 - a_s)
    )
    claimed = -(x_s - mean).square() / (2 * v)
    assert_close((joint - joint[50]), (claimed - claimed[50]), atol=1e-6, rtol=1e-6)


# -- the bound -------------------------------------------------------------------------------------


def gaussian_decoder(schedule, x_0):
    """Of continuous data: its variance is beta_1."""
    sigma = (1 - schedule.alpha_bar[1]).sqrt().to(x_0)
    return lambda estimate: Normal(estimate, sigma).log_prob(x_0).sum(1)


def gap(steps, variance, n):
    """By how many nats the bound with the exact denoiser falls short of log p."""
    torch.manual_seed(0)
    schedule = SCHEDULES["linear"](steps)
    law = Normal1D(schedule)
    x_0 = law.draw(n)
    bound = variational_bound(law.denoise, schedule, x_0, gaussian_decoder(schedule, x_0), variance, chunk=100_000)
    return float(Normal(law.m, law.s).log_prob(x_0).mean() - bound.log_prob.mean())


def test_with_the_exact_denoiser_the_bound_is_below_log_p_and_comes_near():
    """beta_t is nearly the variance of p(x_t-1|x_t) for data that fill the space; q's own is too small for them."""
    few, more = gap(5, "large", 50_000), gap(20, "large", 50_000)
    assert few > 3 * more > 0.06 and abs(gap(1000, "large", 2_000)) < 0.03
    assert gap(1000, "small", 2_000) > 0.3


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_terms_add_up_to_the_bound_of_whole_chains(variance):
    """E_q[log p(x_0..T) - log q(x_1..T|x_0)] (Ho et al., 2020, Eq. 3) of chains drawn step by step, any denoiser."""
    beta, n = torch.tensor([0.05, 0.1, 0.3, 0.6], dtype=F64), 100_000
    schedule, x_0 = DiscreteSchedule(beta), torch.tensor([[0.9, -0.4]], dtype=F64).expand(n, -1)

    def denoise(x, t):
        return (0.8 * x + 0.1 * t[:, None]).tanh()

    bound = variational_bound(denoise, schedule, x_0, gaussian_decoder(schedule, x_0), variance, chunk=n)
    x, log_ratio = x_0, torch.zeros(n, 2, dtype=F64)
    for t, b in enumerate(beta, 1):
        q = Normal((1 - b).sqrt() * x, b.sqrt())
        before, x = x, q.sample()
        log_ratio -= q.log_prob(x)
        estimate, left = denoise(x, torch.full((n,), t)), 1 - (1 - beta[: t - 1]).prod()  # Var[x_t-1|x_0]
        if t == 1:
            log_ratio += Normal(estimate, b.sqrt()).log_prob(x_0)
        else:  # by Bayes' rule, precisions add up
            v = 1 / (1 / left + (1 - b) / b)
            mean = v * ((1 - left).sqrt() * estimate / left + (1 - b).sqrt() * x / b)
            log_ratio += Normal(mean, (b if variance == "large" else v).sqrt()).log_prob(before)
    log_ratio += Normal(0.0, 1.0).log_prob(x)
    by_chain = log_ratio.sum(1)
    error = float(((by_chain.var() + bound.log_prob.var()) / n).sqrt())
    assert error < 0.015
    assert_close(float(bound.log_prob.mean()), float(by_chain.mean()), atol=4 * error, rtol=0)


def test_the_bound_of_its_own_stationary_law_is_exact():
    """Of N(0, I) the reverse step is N(sqrt(1 - beta_t) x_t, beta_t I), as the large variance has it, for any T."""
    schedule, x_0 = SCHEDULES["linear"](10), torch.tensor([[1.5, -0.3]], dtype=F64).expand(50_000, -1)

    def denoise(x, t):
        return column(schedule, t, x).sqrt() * x

    bound = variational_bound(denoise, schedule, x_0, gaussian_decoder(schedule, x_0), "large", chunk=50_000).log_prob
    error = float(bound.std() / len(x_0) ** 0.5)
    assert error < 0.01
    assert_close(float(bound.mean()), float(Normal(0.0, 1.0).log_prob(x_0[0]).sum()), atol=4 * error, rtol=0)


def test_the_decoder_of_discrete_data_has_the_variance_of_the_second_steps_posterior(schedule):
    """q(x_1|x_2, x_0) is a product of two Gaussians in x_1, whose precisions add up."""
    beta = 1 - schedule.alpha_bar[1:3] / schedule.alpha_bar[:2]
    assert_close(decoder_scale(schedule) ** -2, float(1 / beta[0] + (1 - beta[1]) / beta[1]))


def test_the_bound_of_a_gaussian_is_what_its_kernels_give():
    """Every term in closed form: the model's chain p(x_s|x_t) is linear, so that its p(x_0) has a known variance."""
    torch.manual_seed(0)
    schedule = SCHEDULES["linear"](100)
    law = Normal1D(schedule)
    law.m = 0.0
    a, expected = schedule.alpha_bar, 0.0
    for t in range(2, 101):
        c_0, _, v, _ = posterior(schedule(t - 1), schedule(t))
        left = law.s**2 * (1 - a[t]) / (a[t] * law.s**2 + 1 - a[t])  # Var[x_0|x_t]
        expected += float(c_0**2 * left / (2 * v))
    x_0 = law.draw(20_000)
    bound = variational_bound(law.denoise, schedule, x_0, gaussian_decoder(schedule, x_0), chunk=10_000)
    assert_close(float(bound.diffusion.mean()), expected, rtol=0.01, atol=0)


def test_the_prior_term_is_a_kl_of_gaussians():
    schedule = DiscreteSchedule(torch.full((5,), 0.1, dtype=F64))
    x_0 = torch.randn(4, 2, 3, dtype=F64)
    a = schedule.alpha_bar[-1]
    q, p = (Normal(m, s) for m, s in ((a.sqrt() * x_0, (1 - a).sqrt()), (0.0, 1.0)))
    expected = torch.distributions.kl_divergence(q, p).sum((1, 2))
    assert_close(prior_kl(schedule, x_0), expected)
    bound = variational_bound(lambda x, t: x, schedule, x_0, lambda *_: torch.zeros(4, dtype=F64))
    assert_close(bound.prior, expected)
    assert_close(bound.log_prob, -(expected + bound.diffusion + bound.decoder))


def test_drawn_terms_are_unbiased_and_their_error_is_known():
    torch.manual_seed(0)
    schedule = SCHEDULES["linear"](200)
    law = Normal1D(schedule)
    x_0 = torch.full((4000, 1), 0.8, dtype=F64)
    full = variational_bound(law.denoise, schedule, x_0, gaussian_decoder(schedule, x_0), chunk=10**6)
    some = variational_bound(law.denoise, schedule, x_0, gaussian_decoder(schedule, x_0), terms=16)
    assert (full.stderr == 0).all()
    error = some.diffusion.std() / len(x_0) ** 0.5
    assert abs(some.diffusion.mean() - full.diffusion.mean()) < 4 * error
    assert_close(some.stderr.square().mean(), some.diffusion.var(), rtol=0.1, atol=0)


def test_strata_cover_every_time_once():
    cut = strata(1000, 10)
    assert cut[0, 0] == 2 and cut[-1, 1] == 1001 and torch.equal(cut[1:, 0], cut[:-1, 1])
    assert len(cut) == 10 and (cut[:, 1] > cut[:, 0]).all() and len(strata(5, 100)) == 4
    for steps in range(2, 300):
        assert strata(steps, 1).tolist() == [[2, steps + 1]]


def test_the_bound_in_float32_equals_that_in_float64():
    schedule = SCHEDULES["linear"](1000)
    law = Normal1D(schedule)

    def bound(dtype):
        torch.manual_seed(0)
        x_0, noise = law.draw(4), torch.randn

        def denoise(x, t):
            return law.denoise(x.double(), t).to(dtype)

        torch.randn_like = lambda x: noise(x.shape, dtype=F64).to(x)
        try:
            x = x_0.to(dtype)
            found = variational_bound(denoise, schedule, x, gaussian_decoder(schedule, x))
            assert {part.dtype for part in found} == {dtype}
            return found.log_prob
        finally:
            torch.randn_like = like

    like = torch.randn_like
    assert_close(bound(torch.float32).double(), bound(F64), atol=1e-4, rtol=1e-4)


# -- samplers --------------------------------------------------------------------------------------


def recorded(law, seen):
    return lambda x, t: (seen.append(x), law.denoise(x, t))[1]


SAMPLERS = {
    "ancestral small": lambda *a: ancestral(*a),
    "ancestral large": lambda *a: ancestral(*a, variance="large"),
    "ddim": lambda *a: ddim(*a),
    "ddim eta 0.5": lambda *a: ddim(*a, eta=0.5),
    "ddim eta 1": lambda *a: ddim(*a, eta=1.0),
    "dpm_solver": lambda *a: dpm_solver(*a),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_recovers_a_gaussian(name, schedule):
    torch.manual_seed(0)
    law = Normal1D(schedule)
    x = SAMPLERS[name](law.denoise, torch.randn(10_000, 1, dtype=F64), schedule, power_timesteps(1000, 1000))
    assert_close(float(x.mean()), law.m, atol=0.012, rtol=0)
    assert_close(float(x.std()), law.s, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_recovers_two_points(name):
    torch.manual_seed(0)
    schedule = SCHEDULES["linear"](1000)
    x = SAMPLERS[name](
        TwoPoints(schedule).denoise, torch.randn(4_000, 1, dtype=F64), schedule, power_timesteps(1000, 1000)
    )
    near = (x - torch.tensor([-1.0, 0.5])).abs() < 0.05
    assert near.any(1).double().mean() > 0.999
    assert_close(float(near[:, 0].double().mean()), 0.3, atol=0.02, rtol=0)


def exact_flow(law, x_T):
    """Where the probability flow takes x_T for Gaussian data: the quantile stays."""
    a = law.schedule.alpha_bar[-1]
    return law.m + law.s * (x_T - a.sqrt() * law.m) / (a * law.s**2 + 1 - a).sqrt()


def test_the_deterministic_samplers_follow_the_flow_the_second_order_one_sooner():
    schedule = SCHEDULES["cosine"](1000)
    law, x_T = Normal1D(schedule), torch.linspace(-2, 2, 9, dtype=F64)[:, None]

    def error(sampler, n):
        times = power_timesteps(1000, n) if n == 1000 else logsnr_timesteps(schedule, n)
        return float((sampler(law.denoise, x_T, schedule, times) - exact_flow(law, x_T)).abs().max())

    assert error(ddim, 1000) < 5e-3 and error(dpm_solver, 100) < 5e-3
    assert error(ddim, 20) > 3 * error(dpm_solver, 20)
    assert error(ddim, 50) > 1.5 * error(ddim, 100)  # first order
    assert error(dpm_solver, 25) > 3 * error(dpm_solver, 50)  # second


def test_ddim_with_eta_1_and_all_steps_is_the_ancestral_sampler():
    schedule, times = SCHEDULES["linear"](100), power_timesteps(100, 100)
    law, x_T = TwoPoints(schedule), torch.randn(5, 1, dtype=F64)
    a, b = (torch.Generator().manual_seed(0) for _ in range(2))
    steps_a, steps_b = [], []
    ancestral(recorded(law, steps_a), x_T, schedule, times, generator=a)
    ddim(recorded(law, steps_b), x_T, schedule, times, 1.0, generator=b)
    assert len(steps_a) == 100
    assert_close(steps_a, steps_b)


def test_ddim_is_deterministic_and_invertible():
    schedule = SCHEDULES["linear"](1000)
    law, times = Normal1D(schedule), power_timesteps(1000, 1000)
    x_T = torch.randn(9, 1, dtype=F64)
    x_0 = ddim(law.denoise, x_T, schedule, times)
    assert torch.equal(x_0, ddim(law.denoise, x_T, schedule, times))
    assert_close(ddim_inverse(law.denoise, x_0, schedule, times), x_T, atol=0.02, rtol=0)


def test_subsequences_hold_both_ends():
    for n in (2, 3, 10, 50, 999, 1000):
        for power in (1.0, 2.0, 3.0):
            times = power_timesteps(1000, n, power)
            assert times[0] == 1000 and times[-1] == 1 and times == sorted(set(times), reverse=True) and len(times) == n
    assert power_timesteps(1000, 1000) == list(range(1000, 0, -1)) and power_timesteps(1000, 1) == [1000]
    with pytest.raises(ValueError, match="from 1 to 1000"):
        power_timesteps(1000, 1001)


def test_times_even_in_log_snr_hold_both_ends_and_every_time_once(schedule):
    for n in (1, 2, 5, 20, 999, 1000):
        times = logsnr_timesteps(schedule, n)
        assert times[0] == 1000 and times == sorted(set(times), reverse=True) and len(times) == n
        assert times[-1] == 1 or n == 1
    a = schedule.alpha_bar[logsnr_timesteps(schedule, 20)]
    steps = ((a.log() - torch.log1p(-a)) / 2).diff()[1:]
    assert steps.max() / steps.min() < 1.6  # but for the first, which leaps over what is noise alone
    with pytest.raises(ValueError, match="from 1 to 1000"):
        logsnr_timesteps(schedule, 0)
