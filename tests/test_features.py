"""Extractors: those that are shipped tell their classes apart; Inception gives what torch-fidelity gives."""

import pickle

import pytest
import torch
from torch.testing import assert_close

from datamodules import FashionMNIST
from datamodules.mnist import FashionMNIST as Bundled
from lit_generative.metrics.feature_extractors import (
    ASSETS,
    Inception,
    LeNet,
    exact_float32,
    fingerprint,
    load_extractor,
    shipped,
)
from lit_generative.metrics.frechet import Gaussian, frechet_distance
from lit_generative.metrics.two_sample import kernel_distance


def test_shipped_extractors_are_small_and_frozen():
    assert shipped() == ["lenet_fashion_mnist", "lenet_mnist"]
    for name in shipped():
        net = load_extractor(name)
        assert net.name == name and not net.training and not any(p.requires_grad for p in net.parameters())
        assert (ASSETS / f"{name}.safetensors").stat().st_size <= 500_000
        features = net(torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8))
        assert features.shape == (3, 128) and features.dtype == torch.float32


def test_the_fashion_extractor_knows_real_fashion(tmp_path):
    data = FashionMNIST(data_dir=str(tmp_path), download=False, bundled=True)
    images, labels = data.read([next(Bundled.bundle.glob(f"{name}*")) for name in data.files["test"]], "test")
    net = load_extractor("lenet_fashion_mnist")
    accuracy = (net.logits(net(images)).argmax(1) == labels).double().mean()
    assert 0.91 < accuracy < 0.96


def test_images_of_another_size_are_resized_and_colour_is_refused():
    net = LeNet()
    x = torch.full((2, 1, 64, 64), 100, dtype=torch.uint8)
    assert_close(net(x), net(x[..., :28, :28]))
    with pytest.raises(ValueError, match="got 3 channels: choose extractor inception"):
        net(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no extractor lenet: choose inception, lenet_fashion_mnist, lenet_mnist"):
        load_extractor("lenet")


def test_fingerprint_follows_weights_class_and_options():
    class Scaled(torch.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return x.flatten(1).float() * self.scale

    x = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    torch.manual_seed(0)
    net = LeNet()
    before = fingerprint(net, x)
    assert fingerprint(net, x) == before
    with torch.no_grad():
        net.logits.bias[3] += 1e-6
    assert fingerprint(net, x) != before
    marks = [fingerprint(m, x) for m in (Scaled(1), Scaled(1), Scaled(4), torch.nn.Flatten(), Scaled(1).bfloat16())]
    assert marks[0] == marks[1] and len(set(marks[1:4])) == 3


def test_fingerprint_follows_what_is_seen_but_not_its_last_digits():
    class Bent(torch.nn.Module):
        def __init__(self, power, noise=0.0):
            super().__init__()
            self.power, self.noise = power, noise

        def forward(self, x):
            seen = (x.flatten(1).double() / 255) ** self.power
            return seen * (1 + self.noise * torch.linspace(0, 1, seen.shape[1]))

    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert fingerprint(Bent(1), x) == fingerprint(Bent(1, 1e-7), x) != fingerprint(Bent(2), x)


def test_lenet_sees_antialiased_images_in_0_to_1():
    net, seen = LeNet(), []
    net.convs[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stripes = (torch.arange(112) % 4 == 0) * 255
    net(torch.full((1, 1, 28, 28), 255, dtype=torch.uint8))
    net(stripes.to(torch.uint8).expand(1, 1, 112, 112))  # a quarter of the pixels, none of which a fixed step meets
    assert seen[0].min() == seen[0].max() == 1
    assert_close(seen[1][..., 1:-1], torch.full((1, 1, 28, 26), 0.25), atol=0.02, rtol=0)


def test_features_do_not_depend_on_the_precision_of_a_run():
    product = torch.ones(2, 2)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with exact_float32(torch.device("cpu")):
                assert torch.get_float32_matmul_precision() == "highest"
                assert (product @ product).dtype == torch.float32
            assert (product @ product).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_extractor_takes_the_weights_that_it_is_given(tmp_path):
    torch.save({}, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"mine\.pth does not have the weights"):
        load_extractor("inception", str(tmp_path / "mine.pth"))


# -- Inception ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights_path(tmp_path_factory):
    """Random weights in the format of torch-fidelity's file, scaled to keep the activations alive."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Fresh(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            pass

    folder, generator = tmp_path_factory.mktemp("inception"), torch.Generator().manual_seed(0)
    torch.save({}, folder / "none.pth")
    net = Fresh("x", ["2048"], feature_extractor_weights_path=str(folder / "none.pth"))
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(len(module.bias), generator=generator))
            module.running_var.copy_(0.5 + torch.rand(len(module.bias), generator=generator))
            module.bias.copy_(0.1 * torch.randn(len(module.bias), generator=generator))
    torch.save(net.state_dict(), folder / "weights.pth")
    return str(folder / "weights.pth")


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


@pytest.mark.slow
def test_fid_and_kid_are_those_of_torch_fidelity(weights_path):
    """The same images and the same random weights through torch_fidelity.calculate_metrics and through ours."""
    from torch_fidelity import calculate_metrics

    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 128, (10, 3, 32, 32), dtype=torch.uint8, generator=generator)
    theirs = calculate_metrics(
        input1=Images(x),
        input2=Images(y),
        feature_extractor_weights_path=weights_path,
        fid=True,
        kid=True,
        kid_subset_size=8,
        cuda=False,
        verbose=False,
        rng_seed=0,
        batch_size=5,
        save_cpu_ram=True,
    )
    net = Inception(weights_path)
    a, b = net(x), net(y)
    assert a.shape == (10, 2048)
    distance = frechet_distance(Gaussian.of(a), Gaussian.of(b))
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    kid, deviation = kernel_distance(a, b, size=8)
    assert kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


@pytest.mark.slow
def test_folding_changes_no_feature_and_grey_is_repeated(weights_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    x = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=weights_path)
    expected = theirs(x.repeat(1, 3, 1, 1))[0]
    ours = Inception(weights_path)(x)
    assert expected.std() > 0.01
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('this was executed')",)


def test_weights_are_never_unpickled(tmp_path):
    path = tmp_path / "bomb.pth"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="does not have the weights of torch-fidelity's Inception-v3"):
        Inception(str(path))
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not have the weights"):
        Inception(str(path))


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(ValueError, match=r"no network here.*weights_path, or choose .*lenet_mnist"):
        load_extractor("inception")
