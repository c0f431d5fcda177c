"""Callbacks on stubs that have their protocol and nothing else."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from stubs import Reconstructor, Sampler, Stub, trainer

from callbacks import FID, OODScores, PredictionWriter, ReconstructionGrid, Report, SampleGrid
from datamodules import MNIST, FashionMNIST
from lit_generative.models.vae import VAE


@pytest.fixture
def data(data_dir):
    return FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=32)


def pictures(folder):
    result = {}
    for path in sorted((folder / "run" / "version_0" / "images").glob("*.png")):
        with Image.open(path) as image:
            result[path.stem] = np.array(image)
    return result


def test_samples_come_from_the_same_noise_every_time(data, tmp_path):
    trainer(tmp_path, callbacks=[SampleGrid(n=6, columns=3)]).fit(Sampler(), datamodule=data)
    drawn = pictures(tmp_path)
    assert list(drawn) == ["samples_epoch0000_step0000004", "samples_epoch0001_step0000008"]
    first, second = drawn.values()
    assert first.shape == (2 * 30 + 2, 3 * 30 + 2, 3) and (first == second).all()


def test_every_n_epochs(data, tmp_path):
    callback = SampleGrid(n=1, every_n_epochs=2)
    trainer(tmp_path, callbacks=[callback], max_epochs=5).fit(Sampler(), datamodule=data)
    assert [name.split("_")[1] for name in pictures(tmp_path)] == ["epoch0001", "epoch0003"]


def test_originals_stand_above_their_reconstructions(data, tmp_path):
    trainer(tmp_path, callbacks=[ReconstructionGrid(n=5, columns=3)]).test(Reconstructor(), datamodule=data)
    picture = pictures(tmp_path)["reconstructions_test"]
    assert picture.shape == (4 * 30 + 2, 3 * 30 + 2, 3)
    x = next(iter(data.test_dataloader()))[0][:5, 0].numpy()
    assert (picture[2:30, 2:30, 0] == x[0]).all() and (picture[32:60, 2:30, 0] == 255 - x[0]).all()
    assert (picture[62:90, 32:60, 0] == x[4]).all() and (picture[92:120, 32:60, 0] == 255 - x[4]).all()


@pytest.mark.parametrize("callback, method", [(SampleGrid(), "sample"), (ReconstructionGrid(), "reconstruct")])
def test_a_model_without_the_protocol_is_refused_at_the_start(callback, method, data, tmp_path):
    with pytest.raises(TypeError, match=f"{type(callback).__name__} needs a model .* but Stub has no `{method}`"):
        trainer(tmp_path, callbacks=[callback]).fit(Stub(), datamodule=data)


@pytest.mark.slow
def test_looking_does_not_change_training(data, tmp_path):
    """The same weights and noise after training, with and without the callbacks."""
    results = []
    torch.manual_seed(1)
    fit = trainer(tmp_path / "background", max_steps=1, limit_val_batches=0)
    fit.fit(VAE(hidden=(8,), latent=2), datamodule=data)
    fit.save_checkpoint(tmp_path / "background.ckpt")
    fid = FID("lenet_mnist", num_samples=130, neighbours=0, cache_dir=str(tmp_path / "cache"))
    scores = OODScores([MNIST()], str(tmp_path / "background.ckpt"), num_images=8, every_n_epochs=1, resamples=2)
    looking = [SampleGrid(), ReconstructionGrid(), fid, scores]
    for callbacks in ([], [*looking, PredictionWriter(), Report()]):
        torch.manual_seed(0)
        model = VAE(hidden=(8,), latent=2)
        trainer(tmp_path / str(len(callbacks)), callbacks=callbacks).fit(model, datamodule=data)
        results.append((model.state_dict(), torch.random.get_rng_state()))
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)
    assert len(pictures(tmp_path / "6")) == 4


def test_validation_itself_does_not_change_training(data, tmp_path):
    results = []
    for limit in (0, 1.0):
        torch.manual_seed(0)
        model = VAE(hidden=(8,), latent=2)
        trainer(tmp_path / str(limit), limit_val_batches=limit).fit(model, datamodule=data)
        results.append(model.state_dict())
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)


def test_any_logger_or_none(data, tmp_path):
    pytest.importorskip("tensorboard")
    board = TensorBoardLogger(tmp_path, "board")
    trainer(tmp_path, logger=[CSVLogger(tmp_path, "run", 0), board], callbacks=[SampleGrid()]).fit(
        Sampler(), datamodule=data
    )
    board.experiment.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(board.log_dir).Reload()
    assert [event.step for event in events.Images("samples")] == [4, 8]
    trainer(tmp_path / "none", logger=False, callbacks=[SampleGrid(), Report()]).fit(Sampler(), datamodule=data)


def test_wandb_gets_the_picture_with_its_step(tmp_path):
    from unittest.mock import Mock, create_autospec

    from lightning.pytorch.loggers import WandbLogger

    from callbacks._logging import log_image

    logger = create_autospec(WandbLogger, instance=True)
    run = Mock(
        state=Mock(fn=TrainerFn.FITTING),
        log_dir=str(tmp_path),
        fast_dev_run=False,
        is_global_zero=True,
        testing=False,
        loggers=[logger],
    )
    run.current_epoch, run.global_step = 3, 70
    log_image(run, tmp_path, "samples", torch.zeros(3, 4, 4))
    (name, images), kwargs = logger.log_image.call_args
    assert name == "samples" and len(images) == 1
    assert kwargs == {"step": 70, "caption": ["epoch 3, step 70"]}


def test_the_report_has_the_folder_the_numbers_and_the_protocol(data, tmp_path, capsys):
    trainer(tmp_path, callbacks=[SampleGrid(), Report()]).test(Sampler(), datamodule=data, verbose=False)
    out = capsys.readouterr().out
    assert "test of Sampler" in out and "* FashionMNIST: test images of FashionMNIST, 28x28, 8-bit" in out
    assert "3.2500  ± 0.5000" in out and "samples_test.png" in out
    results = json.loads((tmp_path / "run" / "version_0" / "results.json").read_text())
    assert results["metrics"] == {"nll": 3.25, "nll_stderr": 0.5}
    assert results["row"]["NLL, nats"] == "3.2 ± 0.5" and results["row"]["parameters"] == "2"
    assert "recall" not in results["row"]  # not measured
    assert "| Sampler | FashionMNIST | 2 |" in (tmp_path / "run" / "version_0" / "results.md").read_text()


def test_predictions_are_written_in_order(data, tmp_path):
    trainer(tmp_path, callbacks=[PredictionWriter()]).predict(Stub(), datamodule=data)
    with np.load(tmp_path / "run" / "version_0" / "predictions.npz") as file:
        assert file["label"].tolist() == [i % 10 for i in range(40)]
