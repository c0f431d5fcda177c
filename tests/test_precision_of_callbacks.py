"""What looks at a model, in other precisions and on a device without float64."""

import pytest
import torch
from device_without_float64 import device_without_float64, strategy
from lightning.pytorch import Trainer
from test_contract import ARGUMENTS, MODELS, data

import callbacks
from datamodules import KMNIST

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.* samples are fewer than the 128 features"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
]
SEVERAL = {  # of every family, those that bring numbers of their own into the model
    "VAE": ["AttributeDirection", "LatentTraversal", "PosteriorStatistics", "ReconstructionFID"],
    "DDPM": ["LossPerTime", "NoisingAnimation"],
    "DCGAN": ["LatentInterpolation", "SampleGrid"],
    "LatentFlow": ["LatentInterpolation"],
    "Pix2Pix": ["TranslationScores", "TranslationGrid"],
    "CycleGAN": ["TranslationScores", "TranslationGrid"],
}  # fmt: skip


def look(name, data_dir, folder, **options):
    """Numbers of a test, with callbacks, of a model that was not trained."""
    torch.manual_seed(0)
    model = next(cls for cls in MODELS if cls.__name__ == name)(**ARGUMENTS[name])
    watching = [getattr(callbacks, each)() for each in SEVERAL[name]]
    if name not in ("Pix2Pix", "CycleGAN", "DDPM"):  # whose samples take many steps
        watching += [callbacks.FID(num_samples=8, cache_dir=str(folder)),
                     callbacks.OODScores([KMNIST()], synthetic=False, num_images=4, resamples=10)]  # fmt: skip
    trainer = Trainer(default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False,
                      enable_checkpointing=False, limit_test_batches=1, limit_val_batches=1, max_steps=1,
                      callbacks=watching, **options)  # fmt: skip
    images = data(model, data_dir)
    trainer.validate(model, datamodule=images, verbose=False)
    return trainer.test(model, datamodule=images, verbose=False)[0]


@pytest.mark.parametrize("name", SEVERAL)
def test_callbacks_look_at_a_model_in_any_precision(name, data_dir, tmp_path):
    for precision in ["64-true", *["bf16-true"] * (name in ("DCGAN", "Pix2Pix"))]:
        found = look(name, data_dir, tmp_path, accelerator="cpu", precision=precision)
        assert found and all(value == value for value in found.values())


@pytest.mark.parametrize("name", SEVERAL)
def test_callbacks_look_at_a_model_on_a_device_without_float64(name, data_dir, tmp_path, monkeypatch):
    expected = look(name, data_dir, tmp_path / "cpu", accelerator="cpu")
    with device_without_float64(monkeypatch):
        found = look(name, data_dir, tmp_path / "device", strategy=strategy(), inference_mode=False)
    assert found.keys() == expected.keys() and found
