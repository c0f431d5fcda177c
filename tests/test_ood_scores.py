"""The OODScores callback on a model that has a density and nothing else."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from stubs import Density, Random, Stub, trainer

from callbacks import OODScores, Report
from datamodules import CIFAR10, KMNIST, MNIST, FashionMNIST, ImageFolder
from lit_generative.models.vae import VAE

pytestmark = pytest.mark.slow


@pytest.fixture
def data(data_dir):
    return FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32)


def scores(**kwargs):
    return OODScores(**({"data": [MNIST(), FashionMNIST(), KMNIST()], "resamples": 20} | kwargs))


def run_test(model, data, folder, *callbacks):
    return trainer(folder, callbacks=list(callbacks)).test(model, datamodule=data, verbose=False)[0]


def rows(folder):
    with (folder / "run" / "version_0" / "ood" / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_set_and_score_has_its_numbers_files_and_pictures(data, tmp_path, capsys):
    found = run_test(Density(), data, tmp_path, scores(), Report())
    sets = ["MNIST", "KMNIST", "uniform", "constant", "hflip", "vflip", "inverted"]  # searched where the data are
    for name in sets:
        for score in ("likelihood", "typicality", "complexity", "dose"):
            assert 0 <= found[f"ood/{name}/auroc_{score}"] <= 1
    # bright images are unlikely under a law of dark pixels; a flip changes no likelihood
    assert found["ood/inverted/auroc_likelihood"] == found["ood/uniform/auroc_likelihood"] == 1
    assert found["ood/inverted/fpr95_likelihood"] == 0 and found["ood/hflip/auroc_likelihood"] == pytest.approx(
        0.5, abs=0.01
    )
    assert found["ood/auroc_complexity"] == pytest.approx(
        (found["ood/MNIST/auroc_complexity"] + found["ood/KMNIST/auroc_complexity"]) / 2
    )
    written = rows(tmp_path)
    assert len(written) == 40 * 8 + 96 + 32 and [r["images"] for r in written[:97:96]] == ["train", "test"]
    row = next(r for r in written if r["images"] == "KMNIST" and r["number"] == "7")
    image = KMNIST(data_dir=str(data.data_dir)).stored("test")[0][7]
    assert float(row["likelihood"]) == pytest.approx(-float(Density().log_prob(image[None] / 255)), rel=1e-5)
    folder = tmp_path / "run" / "version_0"
    assert {p.name for p in (folder / "images").iterdir()} == {
        f"ood-{name}_test.png" for name in ("likelihood", "typicality", "complexity", "dose")
    }
    out = capsys.readouterr().out
    assert "can fail badly" in out
    (line,) = [line for line in out.splitlines() if line.startswith("  MNIST")]
    expected = [found[f"ood/MNIST/auroc_{score}"] for score in ("likelihood", "typicality", "complexity", "dose")]
    assert [float(cell) for cell in line.split()[1:]] == pytest.approx(expected, abs=6e-4)
    table = (tmp_path / "run" / "version_0" / "ood" / "table.md").read_text()
    assert "| MNIST (40) |" in table and "| train (96) |" in table
    results = json.loads((folder / "results.json").read_text())
    assert (
        results["row"]["OOD AUROC (complexity)"] == f"{found['ood/auroc_complexity']:.3f}"
        and "complexity" in results["protocol"]["OODScores"]
    )


def folder_of(path, level):
    """Twenty images of about one grey level."""
    path.mkdir()
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(level, level + 20, (28, 28)).astype(np.uint8)).save(
            path / f"{i:02d}.png"
        )
    return ImageFolder(str(path), image_size=28, channels=1, test_size=8, batch_size=4, cache_dir=str(path / "cache"))


def test_sets_of_one_class_are_told_apart(tmp_path):
    """By folder and options, not by class; the model's own is left out, and so is one that was named before."""
    own, bright, dim = (folder_of(tmp_path / name, level) for name, level in (("own", 0), ("bright", 200), ("dim", 90)))
    options = {"image_size": 28, "channels": 1, "test_size": 8, "cache_dir": str(tmp_path / "cache")}
    itself = ImageFolder(str(tmp_path / "own"), batch_size=2, random_flip=True, **options)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "dim")
    callback = scores(data=[itself, bright, dim, ImageFolder(str(link), **options)], synthetic=False, resamples=2)
    found = run_test(Density(), own, tmp_path, callback)
    aurocs = {name: value for name, value in found.items() if "-" in name and "auroc_complexity" in name}
    assert list(aurocs) == ["ood/ImageFolder-1/auroc_complexity", "ood/ImageFolder-2/auroc_complexity"]
    assert found["ood/ImageFolder-1/log_prob"] < found["ood/ImageFolder-2/log_prob"] < found["ood/test/log_prob"]
    assert found["ood/auroc_complexity"] == pytest.approx(sum(aurocs.values()) / 2)
    assert f"ImageFolder-1: {tmp_path / 'bright'}, ImageFolder-2: {tmp_path / 'dim'}" in callback.describe_test()
    # another part of the same folder is another set; alone, it has the plain name
    other_part = ImageFolder(str(tmp_path / "own"), seed=1, **options)
    found = run_test(Density(), own, tmp_path / "again", scores(data=[other_part], synthetic=False, resamples=2))
    assert "ood/ImageFolder/auroc_complexity" in found


def test_the_own_class_from_another_folder_is_another_set(data, tmp_path):
    copied = shutil.copytree(data.data_dir / "FashionMNIST", tmp_path / "elsewhere" / "FashionMNIST").parent
    sets = [FashionMNIST(batch_size=3), FashionMNIST(data_dir=str(copied)), MNIST(), MNIST(batch_size=7)]
    callback = scores(data=sets, synthetic=False, resamples=2)
    found = run_test(Density(), data, tmp_path, callback)
    assert [name for name in found if "auroc_likelihood" in name] == [
        "ood/FashionMNIST/auroc_likelihood",
        "ood/MNIST/auroc_likelihood",
    ]
    assert "mean over FashionMNIST, MNIST; log p(x)" in callback.describe_test()


def test_log_likelihoods_are_those_of_the_images(data, data_dir, tmp_path):
    found = run_test(Density(), data, tmp_path, scores(synthetic=False))
    other = MNIST(data_dir=str(data_dir))
    for name, images in (("MNIST", other.stored("test")[0]), ("train", data.stored("train")[0])):
        assert found[f"ood/{name}/log_prob"] == pytest.approx(float(Density().log_prob(images / 255).mean()), rel=1e-5)


def test_scores_do_not_depend_on_what_else_is_in_the_batch(data, tmp_path):
    """Batch norm in training mode would: pure and mixed batches, and batches of one, give the same."""

    class Normed(Density):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(1)

        def log_prob(self, x, c=None):
            return -self.norm(x).square().flatten(1).sum(1)

    model = Normed()
    written = []
    for batch_size in (1, 7, 1000):
        run_test(model, data, tmp_path / str(batch_size), scores(batch_size=batch_size, num_images=9))
        written.append([float(row["likelihood"]) for row in rows(tmp_path / str(batch_size))])
    assert written[0] == pytest.approx(written[1], rel=1e-6) and written[0] == pytest.approx(written[2], rel=1e-6)


def test_draws_follow_the_seed_and_leave_the_generator_alone(data, tmp_path):
    model = Random()
    before = torch.random.get_rng_state()
    found = [run_test(model, data, tmp_path / name, scores(synthetic=False)) for name in ("a", "b")]
    assert found[0] == found[1] and torch.equal(before, torch.random.get_rng_state())


def test_the_background_and_the_models_own_scores_join(data, tmp_path):
    model = VAE(hidden=(8,), latent=2)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0, logger=False)
    run.fit(model, datamodule=data)
    run.save_checkpoint(tmp_path / "background.ckpt")
    callback = scores(background=str(tmp_path / "background.ckpt"), headline="ratio", synthetic=False)
    found = run_test(model, data, tmp_path, callback)
    assert found["ood/MNIST/auroc_ratio"] == 0.5  # the same model, the same draws: every ratio is 0
    assert {"ood/MNIST/auroc_kl", "ood/MNIST/auroc_reconstruction"} <= found.keys()
    assert {float(row["ratio"]) for row in rows(tmp_path)} == {0.0}


def test_nan_is_counted(data, tmp_path):
    class Failing(Density):
        def log_prob(self, x, c=None):
            return torch.where(torch.arange(len(x)) == 0, math.nan, super().log_prob(x))

    with pytest.warns(UserWarning, match="scores are NaN or infinite"):
        found = run_test(Failing(), data, tmp_path, scores(data=[MNIST()], synthetic=False))
    assert found["ood/not_finite"] == 4 * 4  # one image of each of four sets, four scores
    assert 0.4 < found["ood/MNIST/auroc_typicality"] < 0.6


def test_other_sets_go_through_the_models_own_pipeline(data, data_dir, tmp_path, monkeypatch, caplog):
    """Colour and size are changed, and said; binary models see binary images."""
    colour = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    monkeypatch.setattr(CIFAR10, "stored", lambda self, split: (colour, torch.zeros(30)))
    monkeypatch.setattr(CIFAR10, "prepare_data", lambda self: None)
    shapes = set()

    class Looking(Density):
        num_levels = 2

        def log_prob(self, x, c=None):
            shapes.add((tuple(x.shape[1:]), tuple(x.unique().tolist())))
            return super().log_prob(x)

    binary = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32, binarize="dynamic")
    run_test(Looking(), binary, tmp_path, scores(data=[CIFAR10()], synthetic=False))
    assert shapes == {((1, 28, 28), (0.0, 1.0))}
    assert "images of CIFAR10: RGB weighted to grey, resized from 32x32" in caplog.text


def test_what_cannot_work_is_said_at_the_start_or_left_out(data, tmp_path, caplog):
    with pytest.raises(TypeError, match=r"OODScores needs a model .* but Stub has no `log_prob`"):
        run_test(Stub(), data, tmp_path / "a", scores())
    run_test(Stub(), data, tmp_path / "b", scores(strict=False))
    assert "no out-of-distribution scores: OODScores needs a model" in caplog.text
    missing = KMNIST(data_dir=str(tmp_path / "nowhere"), download=False)
    with pytest.raises(ValueError, match="KMNIST was not found"):
        run_test(Density(), data, tmp_path / "c", scores(data=[missing]))
    found = run_test(Density(), data, tmp_path / "d", scores(data=[missing, MNIST()], strict=False))
    assert "scores without KMNIST: KMNIST was not found" in caplog.text
    assert "ood/MNIST/auroc_likelihood" in found and "ood/KMNIST/auroc_likelihood" not in found
    with pytest.raises(ValueError, match="ratio needs a background model"):
        OODScores([], headline="ratio")


def test_in_validation_if_asked(data, tmp_path):
    run = trainer(tmp_path, callbacks=[scores(every_n_epochs=2, synthetic=False)], max_epochs=2)
    run.fit(Density(), datamodule=data)
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        assert sum(bool(row["ood/auroc_complexity"]) for row in csv.DictReader(file)) == 1


def test_a_callback_that_is_used_again_knows_its_new_data(data, data_dir, tmp_path):
    callback = scores(synthetic=False)
    run_test(Density(), data, tmp_path / "a", callback)
    dark = FashionMNIST(data_dir=str(data_dir), batch_size=16)
    stored = dark.stored
    dark.stored = lambda split: (stored(split)[0] // 4, stored(split)[1])
    found = run_test(Density(), dark, tmp_path / "b", callback)
    expected = float(Density().log_prob(dark.stored("test")[0] / 255).mean())
    assert found["ood/test/log_prob"] == pytest.approx(expected, rel=1e-5)


def test_binary_test_images_are_those_of_the_test(data_dir, tmp_path):
    binary = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32, binarize="dynamic")
    callback = scores(synthetic=False)
    run_test(Density(), binary, tmp_path, callback)
    assert torch.equal(callback._sets["test"], binary._sets["test"][0][callback._numbers["test"]])


def test_a_background_of_another_kind_of_pixels_is_refused(data, data_dir, tmp_path):
    binary = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32, binarize="dynamic")
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0, logger=False)
    run.fit(VAE(hidden=(8,), latent=2, likelihood="bernoulli"), datamodule=binary)
    run.save_checkpoint(tmp_path / "background.ckpt")
    with pytest.raises(ValueError, match="2 levels, but FashionMNIST has 256"):
        run_test(Density(), data, tmp_path, scores(background=str(tmp_path / "background.ckpt")))


def test_no_checkpoint_is_chosen_by_other_sets(data, tmp_path):
    choose = ModelCheckpoint(tmp_path / "best", monitor="ood/auroc_complexity")
    run = trainer(tmp_path, callbacks=[scores(every_n_epochs=1), choose], enable_checkpointing=True)
    with pytest.raises(ValueError, match="must not monitor ood/auroc_complexity"):
        run.fit(Density(), datamodule=data)


def test_a_model_without_a_likelihood_gives_its_own_scores(data, tmp_path, capsys):
    class Critic(Stub):
        def ood_scores(self, x):
            return {"critic": x.flatten(1).mean(1)}  # brighter is further out

    found = run_test(Critic(), data, tmp_path, scores())
    assert found["ood/inverted/auroc_critic"] == 1 and not [name for name in found if "likelihood" in name]
    assert "ood/auroc_complexity" not in found
    assert "the model's own, not likelihoods" in capsys.readouterr().out
