"""The base class's logging: means over the steps since the last written line, for one call of `self.log` a line."""

import csv

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from datamodules import FashionMNIST
from lit_generative.module import GenerativeModel


class Counter(GenerativeModel):
    image_shape = (1, 28, 28)

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.steps = 0

    def training_step(self, batch, batch_idx):
        loss = self.net(torch.ones(1, 1)).sum()
        self.steps += 1
        self.accumulate({"loss": loss, "steps": torch.tensor(float(self.steps))}, len(batch[0]))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.fixture
def rows(data_dir, tmp_path):
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)  # five steps an epoch
    logger = CSVLogger(tmp_path, "run", 0)
    Trainer(max_epochs=2, logger=logger, log_every_n_steps=3, accelerator="cpu", enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False).fit(Counter(), datamodule=data)  # fmt: skip
    return list(csv.DictReader((tmp_path / "run" / "version_0" / "metrics.csv").read_text().splitlines()))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:.*no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
def test_a_written_line_is_the_mean_of_the_steps_since_the_last(rows):
    assert [float(row["train/steps"]) for row in rows] == [2, 5, 8]  # of 1..3, 4..6 (over the epoch's end), 7..9
    assert [int(row["step"]) for row in rows] == [2, 5, 8]
    assert all(float(row["train/images_per_second"]) > 0 for row in rows)
