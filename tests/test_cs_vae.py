"""The Cauchy-Schwarz divergence against numerical integrals and known values, and the VAE that it trains."""

import itertools
import math

import pytest
import torch
from sklearn.metrics import confusion_matrix
from stubs import trainer
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from callbacks import LatentScatter, PosteriorStatistics
from datamodules import FashionMNIST
from lit_generative.errors import UserError, UserTypeError
from lit_generative.metrics.aggregation import Contingency
from lit_generative.models.cs_vae import CSVAE, GaussianMixture, log_overlap
from lit_generative.models.vae import VAE


def mixture(components, dims, seed=0):
    torch.manual_seed(seed)
    prior = GaussianMixture(components, dims).double()
    with torch.no_grad():
        prior.logits += torch.randn(components)
        prior.log_scales += 0.3 * torch.randn(components, dims)
    return prior


def gaussian(mean, variance):
    """A mixture of one component."""
    prior = GaussianMixture(1, mean.shape[-1]).double()
    prior.means.data, prior.log_scales.data = mean[None], variance[None].log() / 2
    return prior


def on_grid(dims, side=401, reach=12.0):
    axis = torch.linspace(-reach, reach, side, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * dims).reshape(-1, dims), (axis[1] - axis[0]) ** dims


@pytest.mark.parametrize("dims", [1, 2])
def test_the_closed_form_is_the_integral(dims):
    prior = mixture(3, dims)
    mean, variance = torch.randn(2, dims, dtype=torch.float64), torch.rand(2, dims, dtype=torch.float64) + 0.2
    z, volume = on_grid(dims)
    p = prior.log_prob(z).exp()
    q = Independent(Normal(mean[:, None], variance[:, None].sqrt()), 1).log_prob(z).exp()
    integral = [(a * b).sum(-1) * volume for a, b in ((q, p), (q, q), (p, p))]
    expected = -integral[0].log() + 0.5 * integral[1].log() + 0.5 * integral[2].log()
    assert_close(prior.cauchy_schwarz(mean, variance), expected, rtol=1e-8, atol=1e-8)


def test_the_mixtures_density_is_that_of_torch():
    prior = mixture(4, 3)
    theirs = MixtureSameFamily(
        Categorical(logits=prior.logits), Independent(Normal(prior.means, prior.log_scales.exp()), 1)
    )
    z = torch.randn(5, 2, 3, dtype=torch.float64)
    assert_close(prior.log_prob(z), theirs.log_prob(z))


def test_between_gaussians_it_is_symmetric_zero_only_where_they_agree_and_at_most_either_kl():
    torch.manual_seed(0)
    for _ in range(20):
        (a, b), (va, vb) = torch.randn(2, 4).double(), torch.rand(2, 4).double() + 0.1
        found = gaussian(b, vb).cauchy_schwarz(a[None], va[None])
        assert_close(found, gaussian(a, va).cauchy_schwarz(b[None], vb[None]))
        kls = [
            torch.distributions.kl_divergence(Normal(m, v.sqrt()), Normal(n, w.sqrt())).sum()
            for (m, v), (n, w) in itertools.permutations([(a, va), (b, vb)])
        ]
        assert 0 < found <= min(kls)
        assert abs(gaussian(a, va).cauchy_schwarz(a[None], va[None])) < 1e-14
        equal = gaussian(b, va).cauchy_schwarz(a[None], va[None])
        assert_close(equal, ((a - b).square() / (4 * va)).sum()[None])


def test_a_mixture_of_equal_components_is_one_gaussian():
    one, many = mixture(1, 3), mixture(4, 3)
    with torch.no_grad():
        many.means[:], many.log_scales[:] = one.means, one.log_scales
    mean, variance = torch.randn(5, 3).double(), torch.rand(5, 3).double() + 0.1
    assert_close(many.cauchy_schwarz(mean, variance), one.cauchy_schwarz(mean, variance))


@pytest.mark.parametrize("dims", [2, 64])
def test_it_stays_finite_far_apart_and_for_narrow_posteriors(dims):
    prior = GaussianMixture(10, dims)  # float32
    mean = torch.full((1, dims), 1e4, requires_grad=True)
    for variance in (1e-12, 1.0, 1e6):
        found = prior.cauchy_schwarz(mean, torch.full((1, dims), variance))
        assert found.isfinite().all() and (found > 0).all()
        (gradient,) = torch.autograd.grad(found.sum(), mean)
        assert gradient.isfinite().all()
    a = torch.zeros(dims, dtype=torch.float64)
    expected = Normal(a, math.sqrt(3.0)).log_prob(a + 2).sum()
    assert_close(log_overlap(a, a + 1, a + 2, a + 2), expected)


def small(**options):
    torch.manual_seed(0)
    return CSVAE(image_shape=(1, 4, 4), latent=2, hidden=(8,), likelihood="bernoulli", **options).double()


def test_one_standard_component_is_the_vaes_prior():
    model = small(components=1, divergence="kl")
    model.prior.means.data.zero_()
    vae = VAE(image_shape=(1, 4, 4), latent=2, hidden=(8,), likelihood="bernoulli").double()
    vae.load_state_dict({name: v for name, v in model.state_dict().items() if not name.startswith("prior")})
    x = (torch.rand(3, 1, 4, 4) > 0.5).double()
    bounds = [(torch.manual_seed(1), m.log_prob(x, k=7))[1] for m in (model, vae)]
    assert_close(*bounds)
    terms = [model.objective(x) for _ in range(4000)]
    kl = torch.stack([t["kl"] for t in terms])
    assert ((kl.mean(0) - vae.kl(vae.q(x)).sum(-1)).abs() < 4 * kl.std(0) / math.sqrt(4000)).all()
    assert_close(terms[0]["loss"], -terms[0]["elbo"])


def test_the_divergence_is_weighed_and_the_bound_is_not():
    x = (torch.rand(3, 1, 4, 4) > 0.5).double()
    a, b = ((torch.manual_seed(1), small(weight=w).objective(x))[1] for w in (1.0, 2.5))
    assert_close(b["loss"] - a["loss"], 1.5 * a["cauchy_schwarz"])
    assert_close(a["elbo"], b["elbo"])
    assert_close(a["elbo"], -(a["reconstruction"] + a["kl"]))


def test_samples_of_a_component_are_its():
    model = small(components=3)
    with torch.no_grad():
        model.prior.means[:] = torch.tensor([[-50.0, 0], [0, 50], [50, 0]])
    for component in range(3):
        z = model.sample_prior(20, component)
        assert (model.component_of(z) == component).all() and len(z) == 20
    assert set(model.component_of(model.sample_prior(200)).tolist()) == {0, 1, 2}
    assert model.sample(2, component=1).shape == (2, 1, 4, 4)
    with pytest.raises(UserError, match="component must be 0 to 2, got 3"):
        model.sample(1, component=3)
    with pytest.raises(UserError, match="components must be >= 1"):
        small(components=0)
    with pytest.raises(UserError, match="leave them at 0"):
        small(free_bits=0.1)


def test_the_accuracy_of_clusters_is_that_of_the_best_matching():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (300,), generator=generator)
    cluster = torch.where(torch.rand(300, generator=generator) < 0.6, (label + 2) % 5, label.flip(0))
    metric = Contingency(5)
    for part in (slice(0, 100), slice(100, 300)):
        metric.update(cluster[part], label[part])
    counts = confusion_matrix(cluster, label)
    best = max(sum(counts[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(5)))
    assert float(metric.compute()) == pytest.approx(best / 300)


def test_a_test_logs_the_four_terms_and_the_clustering(data_dir, tmp_path):
    model = CSVAE(hidden=(8,), latent=3, components=4, test_k=(5, 20), weight=0.5)
    data = FashionMNIST(str(data_dir), batch_size=16, val_size=16)
    scatter = LatentScatter(by="component")
    run = trainer(tmp_path, callbacks=[scatter])
    found = run.test(model, datamodule=data, verbose=False)[0]
    log_p, gap, kl = found["test/iwae_20"], found["test/posterior_kl"], found["test/kl"]
    assert log_p - gap + kl == pytest.approx(-found["test/reconstruction"], rel=1e-5)  # E_q log p(x|z)
    assert gap > 0 < found["test/cauchy_schwarz"]
    assert 0 < found["test/clustering_accuracy"] <= 1 and found["test/components_used"] == 4
    assert list(tmp_path.rglob("scatter_components_test.png"))
    with pytest.raises(UserTypeError, match="prior of CSVAE is a mixture"):
        trainer(tmp_path / "b", callbacks=[PosteriorStatistics()]).test(model, datamodule=data, verbose=False)
