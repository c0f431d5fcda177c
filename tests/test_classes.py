"""Labels as conditions of every family: what sees them, what ignores them, and classification by Bayes' rule."""

import math

import pytest
import torch
from small_models import SMALL
from stubs import trainer
from torch import nn
from torch.distributions import Normal
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import lit_generative.models as models
from callbacks import BayesClassifier
from callbacks.defaults import default_callbacks
from datamodules import FashionMNIST
from lit_generative.checkpoints.load import load_model
from lit_generative.flows.prior import ClassNormal
from lit_generative.models import DCGAN, DDPM, R3GAN, VAE, WGANGP, RealNVP
from lit_generative.protocols import HasLogProb, Reconstructs

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`", "ignore:Found .* in eval mode at the start of training"
)

NAMES = ("VAE", "IWAE", "BetaVAE", "FactorVAE", "CSVAE", "EstimatedVAE", "RealNVP", "ResidualFlow", "DCGAN", "WGAN",
         "WGANGP", "R3GAN", "DDPM", "FlowMatching", "LatentDiffusion")  # fmt: skip


def build(name, **options):
    torch.manual_seed(0)
    small = SMALL[name] | {"classes": 3} | options
    return getattr(models, name)(**small | ({"accumulate_grad_batches": 1} if name == "WGANGP" else {}))


def stripes(n):
    """Images of three classes that nobody confuses: of a dark, a grey and a bright level, with noise; 28x28."""
    c = torch.arange(n) % 3
    levels = (c * 100)[:, None, None, None] + torch.randint(0, 40, (n, 1, 28, 28))
    return levels / 255, c


def train(model, folder, epochs=1, n=48):
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(*stripes(n)), 12, shuffle=True)
    run = trainer(folder, max_epochs=epochs)
    run.fit(model, loader)
    return run


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in ("VAE", "RealNVP", "WGANGP") else pytest.mark.slow)
                                  for n in NAMES])  # fmt: skip
def test_every_model_of_classes_learns_and_uses_them(name, tmp_path):
    """Samples and likelihoods change with the label, a checkpoint keeps them, and wrong labels are refused."""
    model = build(name)
    run = train(model, tmp_path, epochs=2)
    run.save_checkpoint(tmp_path / "a.ckpt")
    model = load_model(tmp_path / "a.ckpt").eval()
    assert model.classes == 3
    x, c = stripes(6)

    def draw(labels):
        torch.manual_seed(2)
        return model.sample(6, labels)

    ones = torch.ones_like(c)
    assert not torch.equal(draw(ones), draw(2 * ones)) and torch.equal(draw(ones), draw(ones))
    assert not torch.equal(draw(ones), draw(None))
    if isinstance(model, HasLogProb):
        values = []
        for labels in (None, ones, 2 * ones):
            torch.manual_seed(2)
            values.append(model.log_prob(x, labels).detach())
        assert not torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2])
        with pytest.raises(ValueError, match="a label from 0 to 2 for each of 6 images"):
            model.log_prob(x, c[:4])
    if isinstance(model, Reconstructs):
        assert not torch.equal(model.reconstruct(x, ones), model.reconstruct(x, 2 * ones))
    for wrong in (c[:, None], ones * 4, -ones):
        with pytest.raises(ValueError, match="a label from 0 to 2 for each of 6 images"):
            model.sample(6, wrong)
    for network, inputs in model.programs().values():
        network(*inputs)
    assert model.interpolate(2, 3, c[:2]).shape == (6, 1, 28, 28)


@pytest.mark.parametrize("name", ["VAE", "RealNVP", "DCGAN"])
def test_training_needs_labels(name, tmp_path):
    x, c = stripes(24)
    with pytest.raises(TypeError, match="a label from 0 to 2 for each of 12 images, got NoneType"):
        trainer(tmp_path).fit(build(name), DataLoader(x, 12))
    with pytest.raises(ValueError, match="set classes to 5 or more"):
        trainer(tmp_path / "b").fit(build(name), DataLoader(TensorDataset(x, c * 2), 12))


@pytest.mark.parametrize("name", ["VAE", "RealNVP", "WGANGP"])
def test_training_hides_some_labels(name, tmp_path):
    """From all parts of a step at a time."""
    model, seen = build(name, label_dropout=0.5), []
    entry = {"VAE": "q", "RealNVP": "log_weights", "WGANGP": "judge"}[name]
    inner = getattr(model, entry)
    setattr(model, entry, lambda x, c=None: seen.append(c) or inner(x, c))
    train(model, tmp_path, n=240)
    labels = torch.cat(seen)
    assert abs((labels == 3).float().mean() - 0.5) < 4 * 0.5 / 240**0.5
    if name == "WGANGP":
        assert torch.equal(seen[0], seen[1])  # real and generated images


@pytest.mark.parametrize("name", NAMES)
def test_without_classes_labels_are_ignored(name):
    model = build(name, classes=0).eval()
    draws = [(torch.manual_seed(2), model.sample(3, c))[1] for c in (None, torch.tensor([0, 1, 2]))]
    assert torch.equal(*draws)


# -- what the label does ---------------------------------------------------------------------------


def test_a_class_has_its_own_gaussian_and_none_the_standard_one():
    torch.manual_seed(0)
    prior = ClassNormal(3, 5).double()
    z, c = torch.randn(4, 5).double(), torch.tensor([0, 2, 1, 2])
    nn.init.normal_(prior.mean)
    nn.init.normal_(prior.log_scale, 0, 0.3)
    one_hot = nn.functional.one_hot(c, 3).double()
    eps, log_det = prior.standardize(z, one_hot)
    expected = Normal(prior.mean[c], prior.log_scale[c].exp()).log_prob(z).sum(1)
    assert_close(Normal(0, 1).log_prob(eps).sum(1) + log_det, expected)
    assert_close(prior.place(eps, one_hot), z)
    eps, log_det = prior.standardize(z, torch.zeros(4, 3).double())
    assert torch.equal(eps, z) and not log_det.any()


def test_a_flow_encodes_and_decodes_with_its_label():
    model, (x, c) = build("RealNVP").eval(), stripes(4)
    nn.init.normal_(model.prior.mean)
    z = model.encode(x, c)
    assert_close(model.decode(z, c), x, atol=1e-6, rtol=0)
    assert not torch.equal(model.encode(x), z)
    torch.manual_seed(0)
    with_label = model.log_density(x * 255 / 256, c)
    shifted = model.flow(x * 255 / 256)
    expected = Normal(model.prior.mean[c], model.prior.log_scale[c].exp()).log_prob(shifted[0]).sum(1) + shifted[1]
    assert_close(with_label, expected)


@pytest.mark.parametrize("name", ["DCGAN", "WGAN", "WGANGP", "R3GAN"])
def test_the_discriminator_adds_the_output_of_the_label(name):
    """To that of all images: the projection of the label on the features (Miyato & Koyama, 2018)."""
    model, x, c = build(name).eval(), torch.rand(4, 1, 28, 28) * 2 - 1, torch.tensor([0, 2, 3, 1])
    out = model.discriminator(x)
    assert out.shape == (4, 4)
    projected = torch.stack([out[0, 0] + out[0, 1], out[1, 0] + out[1, 3], out[2, 0], out[3, 0] + out[3, 2]])
    assert_close(model.critic(x, c), projected)
    assert_close(model.critic(x), out[:, 0])


@pytest.mark.parametrize("cls", [DCGAN, WGANGP, R3GAN])
def test_networks_without_classes_have_the_weights_that_they_had(cls):
    plain, labelled = (cls(**SMALL[cls.__name__], classes=n).state_dict() for n in (0, 3))
    assert plain.keys() == labelled.keys()
    grown = {name for name in plain if plain[name].shape != labelled[name].shape}
    assert len(grown) == 2  # the first layer of the generator, the last of the discriminator


def test_the_bound_of_a_labelled_vae_is_one_on_log_p_given_the_label():
    """Against the integral over its one latent dimension."""
    torch.manual_seed(0)
    model = VAE((1, 2, 2), latent=1, hidden=(4,), likelihood="bernoulli", classes=2).double()
    x, c = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0]]).double().view(2, 1, 2, 2), torch.tensor([0, 1])
    z = torch.linspace(-8, 8, 4001).double()
    for labels in (c, 1 - c, None):
        with torch.no_grad():
            log_joint = model.log_likelihood(x, z[:, None, None].expand(-1, 2, 1), labels)
            log_joint = log_joint + Normal(0, 1).log_prob(z)[:, None]
            exact = log_joint.logsumexp(0) + math.log(16 / 4000)
            assert_close(model.log_prob(x, labels, k=50_000), exact, atol=5e-3, rtol=0)


# -- classification --------------------------------------------------------------------------------


class Middle(nn.Module):
    """The middle of every bin, in place of a draw."""

    def forward(self, x):
        return (x * 255 + 0.5) / 256, x.new_full((len(x),), -784 * math.log(256))


def test_bayes_rule_by_hand(data_dir, tmp_path):
    """By the densities of one z under all classes, of the first images; here nothing is drawn."""
    model = RealNVP(width=4, scales=1, classes=10, test_k=1).eval()
    model.dequantization = Middle()
    nn.init.normal_(model.prior.mean, 0, 0.05)
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16)
    callback = BayesClassifier(num_images=20)
    run = trainer(tmp_path, callbacks=[callback], logger=False, limit_test_batches=2)
    (found,) = run.test(model, datamodule=data, verbose=False)
    x, c = (part[:20] for part in (data._sets["test"][0] / 255, data._sets["test"][1]))
    with torch.no_grad():
        z = model.flow(model.dequantization(x)[0])[0][:, None]
    labels = data.labels_of("train")
    log_joint = Normal(model.prior.mean.detach(), 1.0).log_prob(z).sum(-1)  # all scales are 1 still
    log_joint = log_joint + (torch.bincount(labels, minlength=10) / len(labels)).log()
    assert found["test/bayes_accuracy"] == pytest.approx(float((log_joint.argmax(1) == c).double().mean()), abs=1e-6)
    expected = -log_joint.log_softmax(1).gather(1, c[:, None]).mean()
    assert found["test/bayes_cross_entropy"] == pytest.approx(float(expected), rel=1e-3) and expected > 0.1
    assert "first 20 test images" in callback.describe_test()


@pytest.mark.parametrize("name", ["VAE", pytest.param("DDPM", marks=pytest.mark.slow), "RealNVP"])
def test_classes_that_differ_are_told_apart(name, tmp_path):
    options = {"latent": 2, "hidden": [16], "lr": 1e-2} if name == "VAE" else {"lr": 1e-2}
    model = build(name, **options)
    train(model, tmp_path, epochs={"VAE": 60, "DDPM": 60, "RealNVP": 10}[name])
    x, c = stripes(30)
    labels = [torch.full_like(c, k) for k in range(3)]
    with torch.no_grad():
        found = torch.stack([(torch.manual_seed(0), model.eval().log_prob(x, k))[1] for k in labels]).argmax(0)
    assert (found == c).float().mean() > 0.9
    if name == "VAE":  # what is drawn for a label is of its level
        dark, grey, bright = (model.sample(50, k[:1].expand(50)).mean() for k in labels)
        assert dark + 0.08 < grey < bright - 0.08


def test_a_classifier_needs_classes(data_dir, tmp_path):
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16)
    with pytest.raises(ValueError, match="BayesClassifier compares classes, of which VAE has none: train it"):
        trainer(tmp_path, callbacks=[BayesClassifier()]).test(VAE(hidden=(4,)), datamodule=data)


def test_a_test_of_classes_has_a_classifier():
    def added(model, chosen=(), tests=True):
        return [type(callback).__name__ for callback in default_callbacks(model, None, list(chosen), tests)]

    labelled = VAE(hidden=(4,), classes=3)
    assert "BayesClassifier" in added(labelled) and "BayesClassifier" not in added(labelled, tests=False)
    assert "BayesClassifier" not in added(labelled, [BayesClassifier()]) and "BayesClassifier" not in added(VAE())
    assert "BayesClassifier" not in added(DCGAN(width=4, latent=4, classes=3))
    assert "BayesClassifier" in added(DDPM(channels=(8, 8), groups=4, classes=3))
