"""Pictures of what a generator knows: films, interpolations, nearest neighbours."""

import numpy as np
import pytest
import torch
from PIL import Image
from stubs import Sampler, Stub, trainer

from callbacks import LatentInterpolation, LatentManifold, NearestNeighbours, SampleGrid, TrainingAnimation
from datamodules import FashionMNIST
from lit_generative.images import from_uint8
from lit_generative.models.dcgan import DCGAN
from lit_generative.models.realnvp import RealNVP
from lit_generative.utils.interpolation import manifold


@pytest.fixture
def data(data_dir):
    return FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32)


def images(folder):
    return folder / "run" / "version_0" / "images"


def test_a_film_has_a_frame_for_every_epoch(data, tmp_path):
    class Brightening(Sampler):
        """One grey level for each epoch."""

        def sample(self, n, c=None):
            return torch.full((n, 1, 28, 28), (1 + self.current_epoch) / 4)

    trainer(tmp_path, callbacks=[SampleGrid(n=1, columns=1), TrainingAnimation(seconds=0.2)], max_epochs=3).fit(
        Brightening(), datamodule=data
    )
    with Image.open(images(tmp_path) / "samples.gif") as film:
        assert film.n_frames == 3
        levels = []
        for i in range(3):
            film.seek(i)
            assert film.info["duration"] == 200
            levels.append(film.convert("L").getpixel((16, 16)))
    assert levels == pytest.approx([64, 128, 191], abs=1)


def test_a_run_without_pictures_has_no_film(data, tmp_path):
    trainer(tmp_path, callbacks=[TrainingAnimation()], max_epochs=1).fit(Sampler(), datamodule=data)
    assert not images(tmp_path).exists()


def test_interpolations_go_from_one_sample_to_another_at_the_right_distance():
    model = DCGAN(width=4, latent=500).eval()
    seen = []
    model.decode = lambda z, c=None: seen.append(z) or torch.zeros(len(z), 1, 28, 28)
    assert model.interpolate(3, 5).shape == (15, 1, 28, 28)
    z = seen[0].view(3, 5, 500)
    torch.manual_seed(3)
    model.interpolate(3, 5)
    torch.manual_seed(3)
    start, end = torch.randn(2, 3, 500)
    z = seen[1].view(3, 5, 500)
    assert torch.allclose(z[:, 0], start, atol=1e-5) and torch.allclose(z[:, -1], end, atol=1e-5)
    # every point is as far from the origin as a draw of N(0, I), and neighbours are close
    assert torch.allclose(z.norm(dim=-1), torch.tensor(500.0).sqrt(), rtol=0.15)
    assert (z[:, 1:] - z[:, :-1]).norm(dim=-1).max() < 0.6 * (z[:, 0] - z[:, -1]).norm(dim=-1).min()


def test_the_picture_of_interpolations(data, tmp_path):
    trainer(tmp_path, callbacks=[LatentInterpolation(n=2, steps=4)]).test(DCGAN(width=4, latent=4), datamodule=data)
    with Image.open(images(tmp_path) / "interpolations_test.png") as picture:
        assert picture.size == (4 * 30 + 2, 2 * 30 + 2)


def test_the_manifold_goes_through_four_images():
    z = torch.randn(4, 2000)
    points = manifold(z, 8).view(8, 8, 2000)
    for (down, along), i in {(0, 0): 0, (0, 2): 1, (2, 0): 2, (2, 2): 3}.items():
        assert torch.allclose(points[down, along], z[i], atol=1e-5)
    assert torch.allclose(points[4, 0], -z[0], atol=1e-5)
    assert torch.allclose(points.norm(dim=-1), torch.tensor(2000.0).sqrt(), rtol=0.1)


@pytest.mark.parametrize("batch_size", [3, 16])
def test_the_picture_of_a_manifold(batch_size, data_dir, tmp_path):
    data = FashionMNIST(data_dir=str(data_dir), batch_size=batch_size, val_size=32)
    model = RealNVP(stack="fully_connected", couplings=2, width=4, depth=1, test_k=1)
    trainer(tmp_path, callbacks=[LatentManifold(steps=4)]).test(model, datamodule=data)
    with Image.open(images(tmp_path) / "manifold_test.png") as picture:
        assert picture.size == (4 * 30 + 2, 4 * 30 + 2)
        first = torch.from_numpy(np.array(picture.crop((2, 2, 30, 30)).convert("L"))).long()
    data.setup("test")
    x = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)[0]
    assert torch.equal(first, x[0, 0].mul(255).round().long())


def test_a_copied_image_stands_beside_itself(data, tmp_path):
    training = data.convert(data.stored("train")[0])

    class Copier(Sampler):
        def sample(self, n, c=None):
            return from_uint8(training[10 : 10 + n])

    callback = NearestNeighbours(n=3, k=2)
    trainer(tmp_path, callbacks=[callback]).test(Copier(), datamodule=data)
    assert callback._nearest(training[17])[0] == 17
    with Image.open(images(tmp_path) / "neighbours_test.png") as picture:
        assert picture.size == (3 * 30 + 2, 3 * 30 + 2)
        assert picture.crop((2, 2, 30, 30)).tobytes() == picture.crop((32, 2, 60, 30)).tobytes()
        assert picture.crop((2, 2, 30, 30)).tobytes() != picture.crop((62, 2, 90, 30)).tobytes()


def test_what_cannot_work_is_said_at_the_start(data, tmp_path):
    with pytest.raises(TypeError, match=r"LatentInterpolation needs a model .* but Stub has no `interpolate`"):
        trainer(tmp_path, callbacks=[LatentInterpolation()]).fit(Stub(), datamodule=data)
    with pytest.raises(ValueError, match=r"k must be <= 96 \(training images\), got 97"):
        trainer(tmp_path / "k", callbacks=[NearestNeighbours(k=97)]).fit(Sampler(), datamodule=data)
