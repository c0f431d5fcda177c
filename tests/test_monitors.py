"""A run whose checkpoints are chosen by a number that nothing logs does not start."""

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from stubs import Quarters, Sampler, trainer

import train
from callbacks import FID, CheckMonitors, PosteriorStatistics, ReconstructionFID
from datamodules import FashionMNIST
from lit_generative.models.vae import VAE

pytestmark = pytest.mark.slow

RECIPE = Path(train.__file__).parent / "configs" / "dcgan_fashion_mnist_28.yaml"


@pytest.fixture
def data(data_dir):
    return FashionMNIST(str(data_dir), batch_size=16, val_size=16)


def test_a_recipe_without_its_fid_is_refused_before_the_first_step(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    steps = []
    monkeypatch.setattr("lit_generative.models.dcgan.DCGAN.training_step", lambda *_: steps.append(1))
    args = ["fit", f"--config={RECIPE}", "--trainer.callbacks=[]", "--data.batch_size=16", "--data.val_size=16",
            "--model.width=4", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]  # fmt: skip
    message = (
        "ModelCheckpoint monitors val/fid_lenet_fashion_mnist, but nothing in this run logs it; logged in validation: "
        r"nothing\. Add the callback that logs it to --trainer\.callbacks, or change --checkpoint\.monitor"
    )
    with pytest.raises(SystemExit, match=message):
        train.main(args)
    assert not steps


def fit(model, data, folder, *callbacks, **options):
    run = trainer(folder, callbacks=[*callbacks, CheckMonitors()], max_epochs=1, enable_checkpointing=True,
                  logger=False, limit_val_batches=1, **options)  # fmt: skip
    run.fit(model, datamodule=data)
    return run


@pytest.mark.parametrize("monitor", ["val/elbo", "val/active_units", "train/elbo"])
def test_numbers_of_the_model_of_callbacks_and_of_training_are_known(monitor, data, tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor=monitor, filename="best", save_on_train_epoch_end=True)
    fit(VAE(hidden=(8,), latent=2), data, tmp_path, PosteriorStatistics(num_images=8), keep)
    assert keep.best_model_score is not None


def test_a_distance_is_known_by_its_extractor(data, tmp_path):
    fid = FID(Quarters(), num_samples=8, batch_size=8, cache_dir=str(tmp_path))
    keep = ModelCheckpoint(tmp_path, monitor="val/fid_quarters")
    fit(Sampler(), data, tmp_path, fid, keep)
    assert keep.best_model_score is not None
    fid = FID(Quarters(), num_samples=8, batch_size=8, cache_dir=str(tmp_path), every_n_epochs=0)
    with pytest.raises(ValueError, match="monitors val/fid_inception, but nothing in this run logs it"):
        fit(Sampler(), data, tmp_path, fid, ModelCheckpoint(tmp_path / "other", monitor="val/fid_inception"))


def test_callbacks_say_all_that_they_log_in_validation(data, tmp_path):
    options = {"cache_dir": str(tmp_path), "every_n_epochs": 1}
    watching = (PosteriorStatistics(num_images=8), FID(Quarters(), num_samples=8, **options),
                ReconstructionFID(Quarters(), **options))  # fmt: skip

    def names(*callbacks):
        run = fit(VAE(hidden=(8,), latent=2), data, tmp_path / str(len(callbacks)), *callbacks)
        return {name for name in run.callback_metrics if name.startswith("val/")}

    of_callbacks = names(*watching) - names()
    assert len(of_callbacks) == 7 and {f"val/{name}" for one in watching for name in one.logged} == of_callbacks


def test_early_stopping_waits_for_no_number_that_never_comes(data, tmp_path):
    with pytest.raises(ValueError, match=r"EarlyStopping monitors val/los, .*val/elbo.*val/loss.* monitor of Early"):
        fit(VAE(hidden=(8,), latent=2), data, tmp_path, EarlyStopping("val/los"))
    fit(VAE(hidden=(8,), latent=2), data, tmp_path, EarlyStopping("val/los", strict=False))


def test_callbacks_of_the_users_own_may_log_anything(data, tmp_path):
    class Own(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                pl_module.log("val/own", 1.0)

    keep = ModelCheckpoint(tmp_path, monitor="val/own")
    fit(VAE(hidden=(8,), latent=2), data, tmp_path, Own(), keep)
    assert float(keep.best_model_score) == 1
