"""Callbacks that look at diffusions, each on its protocol alone."""

import csv

import pytest
import torch
from PIL import Image
from stubs import Stub, trainer
from test_callbacks import pictures

from callbacks import DenoisingAnimation, LossPerTime, NoisingAnimation
from datamodules import FashionMNIST


class Fading(Stub):
    """Images darken linearly with t; the loss is t."""

    steps = 100

    def noised(self, x, t):
        return (1 - t.view(-1, 1, 1, 1) / self.steps).clamp(0, 1).expand(len(x), 1, 28, 28)

    def denoising_trajectory(self, n, every, c=None):
        t = torch.arange(self.steps, -1, -every)
        return self.noised(t, t)[:, None].expand(-1, n, -1, -1, -1)

    def losses_at(self, x, t, c=None):
        assert (t >= 1).all() and (t <= self.steps).all()
        return t.float()


@pytest.fixture
def data(data_dir):
    return FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32)


@pytest.mark.parametrize(
    ("callback", "name", "levels"),
    [
        (NoisingAnimation(n=4, every=25), "noising", [255, 191, 128, 64, 0]),
        (DenoisingAnimation(n=4, every=50), "denoising", [0, 128, 255]),
    ],
)
def test_a_film_and_a_picture_with_a_row_for_each_image(callback, name, levels, data, tmp_path):
    trainer(tmp_path, callbacks=[callback]).test(Fading(), datamodule=data, verbose=False)
    drawn = pictures(tmp_path)[f"{name}_test"]
    assert drawn.shape[:2] == (4 * 30 + 2, len(levels) * 30 + 2)
    assert drawn[16, 16::30, 0].tolist() == pytest.approx(levels, abs=1)
    with Image.open(tmp_path / "run" / "version_0" / "images" / f"{name}_test.gif") as film:
        assert film.n_frames == len(levels)
        seen = []
        for i in range(film.n_frames):
            film.seek(i)
            seen.append(film.convert("L").getpixel((16, 16)))
    assert seen == pytest.approx(levels, abs=2)


def test_long_films_have_pictures_of_some_of_their_frames(data, tmp_path):
    trainer(tmp_path, callbacks=[NoisingAnimation(n=1, every=1)]).test(Fading(), datamodule=data, verbose=False)
    assert pictures(tmp_path)["noising_test"].shape[1] == 16 * 30 + 2
    with Image.open(tmp_path / "run" / "version_0" / "images" / "noising_test.gif") as film:
        assert film.n_frames == 101


def test_losses_are_averaged_by_time(data, tmp_path):
    trainer(tmp_path, callbacks=[LossPerTime(bins=4)]).test(Fading(), datamodule=data, verbose=False)
    folder = tmp_path / "run" / "version_0"
    rows = list(csv.DictReader((folder / "loss_per_time.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == pytest.approx([13, 38, 63, 88], abs=4)
    assert sum(int(row["images"]) for row in rows) == len(data.stored("test")[0])
    assert "loss-per-time_test" in pictures(tmp_path)


def test_every_image_of_every_batch_has_a_time_and_noise_of_its_own(data, tmp_path):
    class Noisy(Fading):
        def losses_at(self, x, t, c=None):
            seen.append((t, torch.rand(len(x))))
            return t.float()

    seen = []
    trainer(tmp_path, callbacks=[LossPerTime(bins=4)], limit_test_batches=2).test(
        Noisy(), datamodule=data, verbose=False
    )
    (t_1, noise_1), (t_2, noise_2) = seen
    assert not torch.equal(t_1, t_2) and not torch.equal(noise_1, noise_2)


@pytest.mark.parametrize("callback", [NoisingAnimation(), DenoisingAnimation(), LossPerTime()])
def test_a_model_that_does_not_diffuse_is_refused(callback, data, tmp_path):
    with pytest.raises(TypeError, match="follows `Diffuses`, but Stub has no"):
        trainer(tmp_path, callbacks=[callback]).test(Stub(), datamodule=data)


def test_what_makes_no_sense_is_refused():
    for make in (lambda: NoisingAnimation(every=0), lambda: DenoisingAnimation(n=0), lambda: LossPerTime(bins=0)):
        with pytest.raises(ValueError, match="must be >= 1, got 0"):
            make()
