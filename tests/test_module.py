"""The base class's logging: means over the steps since the last written line, for one call of `self.log` a line."""

import csv

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from datamodules import FashionMNIST
from lit_generative.generative_model import GenerativeModel

pytestmark = pytest.mark.filterwarnings(
    "ignore:You passed in a `val_dataloader` but have no `validation_step`",
    "ignore:You defined a `validation_step`",
)


class Counter(GenerativeModel):
    image_shape = (1, 28, 28)

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.steps = 0

    def training_step(self, batch, batch_idx):
        loss = self.net(torch.ones(1, 1)).sum()
        self.steps += 1
        self.log_terms({"loss": loss, "steps": torch.tensor(float(self.steps))}, len(batch[0]))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(data_dir, tmp_path, **kwargs):
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)  # five steps an epoch
    logger = CSVLogger(tmp_path, "run", 0)
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=2, logger=logger, log_every_n_steps=3, accelerator="cpu", **quiet, **kwargs)
    trainer.fit(Counter(), datamodule=data)
    return list(csv.DictReader((tmp_path / "run" / "version_0" / "metrics.csv").read_text().splitlines()))


def test_a_written_line_is_the_mean_of_the_steps_since_the_last(data_dir, tmp_path):
    rows = fit(data_dir, tmp_path)
    assert [float(row["train/steps"]) for row in rows] == [2, 5, 8]  # of 1..3, 4..6 (over the epoch's end), 7..9
    assert [int(row["step"]) for row in rows] == [2, 5, 8]
    assert all(float(row["train/images_per_second"]) > 0 for row in rows)


def test_accumulated_batches_count_as_one_step(data_dir, tmp_path):
    """Five batches an epoch, two a step: steps end after batches 2, 4, 5 and 7, 9, 10; lines after steps 3 and 6."""
    rows = fit(data_dir, tmp_path, accumulate_grad_batches=2)
    assert [float(row["train/steps"]) for row in rows] == [3, 8]  # of 1..5 and 6..10


def test_fine_tuning_from_a_checkpoint_follows_its_own_seed(data_dir, tmp_path):
    """The noise of a checkpoint is gone on with when a run is resumed, and only then."""
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=1, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
    trainer.fit(Counter(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    model = Counter.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    torch.manual_seed(5)
    expected = torch.random.get_rng_state()
    Trainer(max_steps=1, default_root_dir=tmp_path, enable_checkpointing=False, **quiet).fit(model, datamodule=data)
    assert torch.equal(torch.random.get_rng_state(), expected)
