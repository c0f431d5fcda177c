"""Callbacks that look at translations, each on its protocol alone."""

import math

import pytest
import torch
from stubs import Quarters, Stub, trainer
from test_callbacks import pictures
from torch import nn
from torch.testing import assert_close

from benchmarks.scenes.streets import write
from callbacks import (
    FID,
    LossCurves,
    SampleGrid,
    TranslationFID,
    TranslationGrid,
    TranslationScores,
)
from datamodules import Cityscapes
from lit_generative.metrics.segmentation import confusion, label_scores, nearest_colour

pytestmark = pytest.mark.slow

SIZE = 16


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets") / "pairs"
    write(root, "archives", {"train": 10, "val": 5}, size=32, seed=0)
    return root


@pytest.fixture
def data(streets, tmp_path):
    options = {"image_size": SIZE, "val_size": 4, "batch_size": 2, "cache_dir": str(tmp_path / "cache")}
    return lambda **more: Cityscapes(str(streets), **options | more)


class Darker(Stub):
    """Takes the source for its target, a tenth darker."""

    image_shape = (3, SIZE, SIZE)

    def translate(self, c):
        return 0.9 * c


class Perfect(Stub):
    def translate(self, c):
        return c


class Black(Stub):
    def translate(self, c):
        return torch.zeros_like(c)


class Swapped:
    """Data whose sources are their targets."""

    def __init__(self, data):
        self.data = data
        make = data.on_after_batch_transfer
        data.on_after_batch_transfer = lambda batch, i: (make(batch, i)[0],) * 2


def test_the_grid_shows_source_translation_and_target_of_the_first_pairs(data, tmp_path):
    cities = data()
    trainer(tmp_path, callbacks=[TranslationGrid(n=3)]).test(Darker(), datamodule=cities, verbose=False)
    drawn = torch.from_numpy(pictures(tmp_path)["translations_test"]).double() / 255
    assert drawn.shape[:2] == (3 * (SIZE + 2) + 2, 3 * (SIZE + 2) + 2)
    tiles = drawn[2:, 2:].unfold(0, SIZE, SIZE + 2).unfold(1, SIZE, SIZE + 2)  # (3, 3, channels, H, W)
    batches = [cities.on_after_batch_transfer(batch, 0) for batch in cities.test_dataloader()]
    x, c = (torch.cat(images)[:3].double() for images in zip(*batches, strict=True))
    for column, images in enumerate((c, 0.9 * c, x)):
        assert_close(tiles[:, column], images, atol=1 / 255, rtol=0)


def test_one_hot_sources_are_shown_as_levels(data, tmp_path):
    class Grey(Stub):
        def translate(self, c):
            return c.mean(1, keepdim=True).expand(-1, 3, -1, -1)

    trainer(tmp_path, callbacks=[TranslationGrid()]).test(Grey(), datamodule=data(labels="one_hot"), verbose=False)
    assert len(pictures(tmp_path)["translations_test"]) > 0


def test_scores_are_those_of_the_images(data, tmp_path):
    cities = data(direction="photo_to_labels")
    Swapped(cities)
    fit = trainer(tmp_path, callbacks=[TranslationScores()])
    (metrics,) = fit.test(Darker(), datamodule=cities, verbose=False)
    x = torch.cat([cities.on_after_batch_transfer(batch, 0)[0] for batch in cities.test_dataloader()])
    made = (0.9 * x * 255).round() / 255
    assert_close(metrics["test/l1"], float((made - x).abs().mean()), rtol=1e-5, atol=0)
    psnr = [-10 * math.log10(float((a - b).square().mean())) for a, b in zip(made, x, strict=True)]
    assert_close(metrics["test/psnr"], sum(psnr) / len(psnr), rtol=1e-4, atol=0)
    assert 0.5 < metrics["test/ssim"] < 1
    (perfect,) = fit.test(Perfect(), datamodule=cities, verbose=False)
    assert perfect["test/l1"] == 0 and perfect["test/ssim"] == pytest.approx(1, abs=1e-4)
    assert perfect["test/pixel_accuracy"] == perfect["test/class_accuracy"] == perfect["test/class_iou"] == 1
    (black,) = fit.test(Black(), datamodule=cities, verbose=False)
    assert black["test/class_iou"] < 0.2


def test_a_network_judges_translations_of_labels_and_the_real_photos(data, tmp_path):
    class Judge(nn.Module):
        """Says road wherever it is dark, sky elsewhere."""

        def forward(self, images):
            dark = images.mean(1) < 0.45
            return torch.stack([dark, *[torch.zeros_like(dark)] * 9, ~dark, *[torch.zeros_like(dark)] * 8], 1).float()

    cities = data()
    fit = trainer(tmp_path, callbacks=[TranslationScores(Judge())])
    (metrics,) = fit.test(Black(), datamodule=cities, verbose=False)
    classes = cities.truth("test", torch.arange(5))
    counted = classes < 19
    assert metrics["test/pixel_accuracy"] == pytest.approx(float((classes == 0).sum() / counted.sum()))
    assert metrics["test/class_accuracy"] == pytest.approx(1 / len(classes[counted].unique()))
    assert metrics["test/real_pixel_accuracy"] > metrics["test/pixel_accuracy"]
    with pytest.raises(ValueError, match="those of Cityscapes are not: remove it"):
        fit.test(Black(), datamodule=data(direction="photo_to_labels"))


@pytest.mark.parametrize(
    "direction, network",
    [("labels_to_photo", None), ("labels_to_photo", nn.Conv2d(3, 19, 1)), ("photo_to_labels", None)],
)
def test_what_may_be_chosen_by_is_what_is_logged(direction, network, data, tmp_path):
    scores = TranslationScores(network, lpips=False)
    run = trainer(tmp_path, callbacks=[scores])
    (found,) = run.validate(Darker(), datamodule=data(direction=direction), verbose=False)
    assert {name for name in found if name != "val/loss"} == {f"val/{name}" for name in scores.logged}


@pytest.mark.parametrize("batch_size", [2, 5])
def test_polegroups_do_not_count_as_poles(batch_size, data, tmp_path):
    """They have the colour of poles: a picture of nothing but poles is right where the ids say so, and nowhere else."""

    class Poles(Stub):
        def translate(self, c):
            return torch.full_like(c, 153 / 255)

    options = {"batch_size": batch_size, "image_size": 32}
    cities = data(direction="photo_to_labels", **options)
    fit = trainer(tmp_path, callbacks=[TranslationScores()], limit_train_batches=1, max_epochs=1)
    (metrics,) = fit.test(Poles(), datamodule=cities, verbose=False)
    x = torch.cat([cities.on_after_batch_transfer(batch, 0)[0] for batch in cities.test_dataloader()])
    ids = data(labels="ids", **options)
    ids.setup()
    num_downs = torch.cat([ids.on_after_batch_transfer(batch, 0)[1] for batch in ids.test_dataloader()])
    pole, group, void = ((num_downs * 33).round() == label for label in (17, 18, 0))
    assert group.sum() > 5 and (x.movedim(1, -1)[group[:, 0]] == 153 / 255).all()
    share = float(pole.sum() / (~group & ~void).sum())
    assert metrics["test/pixel_accuracy"] == pytest.approx(share)
    fit.fit(Poles(), datamodule=cities)
    truth = cities.truth("val", torch.arange(4))
    share = float((truth == 5).sum() / (truth < 19).sum())
    assert float(fit.logged_metrics["val/pixel_accuracy"]) == pytest.approx(share)


def test_label_scores_on_numbers():
    """Class 3 is found and not there: an IoU of 0, as in Cityscapes' own script; class 4 is neither and is left out."""
    truth = torch.tensor([[[0, 0], [1, 255]], [[0, 2], [2, 2]]])
    found = torch.tensor([[[0, 1], [1, 4]], [[0, 2], [0, 3]]])
    table = confusion(truth, found, 5)
    assert table.shape == (2, 5, 5) and table.sum() == 7  # one pixel does not count, whatever is found there
    scores = label_scores(table.sum(0))
    assert scores["pixel_accuracy"] == pytest.approx(4 / 7)
    assert scores["class_accuracy"] == pytest.approx((2 / 3 + 1 + 1 / 3) / 3)
    assert scores["class_iou"] == pytest.approx((2 / 4 + 1 / 2 + 1 / 3 + 0) / 4)
    assert table[0].tolist()[0][:2] == [1, 1] and table[1].tolist()[2] == [1, 0, 1, 1, 0]  # rows are the truth
    palette = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 1]])
    pixels = torch.tensor([[0.2, 0.1, 0], [0.9, 0.3, 0.2], [0.8, 0.9, 0.6]]).T.view(1, 3, 1, 3)
    assert nearest_colour(pixels, palette).flatten().tolist() == [0, 1, 2]


def test_the_distance_is_that_of_the_translations(data, tmp_path):
    cities = data(direction="photo_to_labels")
    Swapped(cities)
    fit = trainer(tmp_path, callbacks=[TranslationFID(Quarters(), cache_dir=str(tmp_path / "fid"))])
    (same,) = fit.test(Perfect(), datamodule=cities, verbose=False)
    (darker,) = fit.test(Darker(), datamodule=cities, verbose=False)
    name = "test/fid_translations_quarters"
    assert same[name] == pytest.approx(0, abs=1e-6) and darker[name] > 1e-3


def test_losses_are_drawn_when_training_ends(data, tmp_path):
    class Losing(Darker):
        def training_step(self, batch, batch_idx):
            self.log("train/loss_generator", 3.0 - self.current_epoch)
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, callbacks=[LossCurves()], max_epochs=2).fit(Losing(), datamodule=data())
    (drawn,) = [picture for name, picture in pictures(tmp_path).items() if name.startswith("loss-curves")]
    assert drawn.std() > 10


def test_curves_go_on_behind_a_resumed_run_and_have_no_stale_points(data, tmp_path):
    class Losing(Darker):
        def training_step(self, batch, batch_idx):
            if self.trainer.current_epoch != 1:
                self.log("train/loss_generator", 1.0 + self.trainer.current_epoch)
            return super().training_step(batch, batch_idx)

    first = LossCurves()
    trainer(tmp_path, callbacks=[first], max_epochs=3, log_every_n_steps=1).fit(Losing(), datamodule=data())
    assert first.state_dict() == {"train/loss_generator": [[0, 1.0], [2, 3.0]]}
    second = LossCurves()
    second.load_state_dict(first.state_dict())
    trainer(tmp_path / "again", callbacks=[second], max_epochs=1, log_every_n_steps=1).fit(Losing(), datamodule=data())
    assert second.state_dict()["train/loss_generator"] == [[0, 1.0], [2, 3.0], [0, 1.0]]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            torch.nn.Conv2d(3, 5, 1),
            r"must give logits \(1, 19, 16, 16\) for an image, got \(1, 5, 16, 16\)",
        ),
        (torch.nn.Conv2d(3, 19, 4, 4), r"got \(1, 19, 4, 4\)"),
    ],
)
def test_a_network_of_other_labels_is_refused_before_the_start(layers, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, callbacks=[TranslationScores(layers)]).test(Darker(), datamodule=data())
    with pytest.raises(ValueError, match=r"must be in 0\.\.18, got 0 to 20"):
        confusion(torch.zeros(1, 1, 2, dtype=torch.long), torch.tensor([[[0, 20]]]), 19)


@pytest.mark.parametrize("callback", [TranslationGrid(), TranslationScores(), TranslationFID(Quarters())])
def test_a_model_that_does_not_translate_is_refused(callback, data, tmp_path):
    with pytest.raises(TypeError, match="follows `Translates`, but Stub has no `translate`"):
        trainer(tmp_path, callbacks=[callback]).test(Stub(), datamodule=data())


@pytest.mark.parametrize("callback", [SampleGrid(), FID(Quarters(), num_samples=10)])
def test_callbacks_of_samples_refuse_a_model_that_translates(callback, data, tmp_path):
    class Both(Darker):
        def sample(self, n, c=None):
            return c

    with pytest.raises(TypeError, match="choose TranslationGrid, TranslationScores or TranslationFID"):
        trainer(tmp_path, callbacks=[callback]).test(Both(), datamodule=data())
