"""Data modules: options, splits, sizes and batches. No network, made-up files."""

from types import SimpleNamespace

import pytest
import torch
from data_files import images, isolate, make, write_idx
from lightning import LightningModule, Trainer

from datamodules import DataError


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


def test_the_split_is_fixed_and_disjoint_and_leaves_the_test_images_alone(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")

    def numbers(data, split):
        return images(data, split)[:, 0, 0, 0].tolist()

    data, same = make(tmp_path, stage=None), make(tmp_path, batch_size=3)
    train, val = numbers(data, "train"), numbers(data, "val")
    assert sorted(train + val) == list(range(60)) and val != sorted(val)
    assert (train, val) == (numbers(same, "train"), numbers(same, "val"))
    assert numbers(make(tmp_path, seed=1), "val") != val
    assert numbers(data, "test") == list(range(20))
    assert make(tmp_path, val_size=0).val_dataloader() == []


def test_a_stage_reads_its_own_files_only_and_once(tmp_path):
    raw = write_idx(tmp_path / "MNIST" / "raw")
    data = make(tmp_path, stage="test")
    assert list(data._sets) == ["test"]
    data.setup("validate")
    for path in raw.iterdir():
        path.unlink()
    for stage in ("fit", "validate", "test", "predict", None):
        data.setup(stage)


@pytest.mark.parametrize(("size", "before"), [(32, 2), (33, 2)])
def test_padding_is_centred_zeros(tmp_path, size, before):
    write_idx(tmp_path / "MNIST" / "raw", level=200)
    data = make(tmp_path, stage="test", image_size=size)
    x = images(data, "test")
    assert data.image_shape == (1, size, size) and x.shape == (20, 1, size, size)
    inside = x[:, :, before : before + 28, before : before + 28]
    assert (inside[:, 0, 1:] == 200).all() and inside.sum() == x.sum()


@pytest.mark.parametrize("size", [14, 40])
def test_resizing_keeps_the_mean(tmp_path, size):
    write_idx(tmp_path / "MNIST" / "raw", level=200)
    x = images(make(tmp_path, stage="test", image_size=size, resize="resize"), "test")
    assert x.dtype == torch.uint8 and x.shape == (20, 1, size, size)
    assert (x[:, 0, 3:] == 200).all()


def test_binarisation(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", level=128)
    dynamic, static = (make(tmp_path, stage=None, binarize=kind) for kind in ("dynamic", "static"))
    other = make(tmp_path, stage=None, binarize="dynamic", batch_size=5)
    assert dynamic.num_levels == static.num_levels == 2
    for split in ("val", "test"):
        assert images(dynamic, split).unique().tolist() == [0, 255]
        assert torch.equal(images(dynamic, split), images(static, split))
        assert torch.equal(images(dynamic, split), images(other, split))
    assert 128 in images(dynamic, "train") and 128 not in images(static, "train")
    for data, changes in ((dynamic, True), (static, False)):
        loader = data.train_dataloader()
        totals = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            x = torch.cat([x for x, _ in loader])
            assert x.unique().tolist() == [0, 255]
            totals.append(int((x == 255).sum()))
        assert (totals[0] != totals[1]) == changes


def test_batches_are_levels_over_255_after_the_transfer(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    data = make(tmp_path, stage=None, random_flip=True)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    for loader in loaders:
        for batch in loader:
            x, c = data.on_after_batch_transfer(batch, 0)
            assert x.dtype == torch.float32 and x.shape[1:] == data.image_shape and c.dtype == torch.int64
            assert torch.equal(x, (batch[0].double() / 255).float())
    assert [loader.random_flip for loader in loaders] == [True, False, False, False]
    assert [loader.shuffle for loader in loaders] == [True, False, False, False]


def test_the_trainer_says_which_rank(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    data = make(tmp_path, stage=None)
    data.trainer = SimpleNamespace(global_rank=1, world_size=2, overfit_batches=0)
    assert (data.train_dataloader().rank, len(data.train_dataloader())) == (1, 2)
    assert sum(len(c) for _, c in data.test_dataloader()) == 10
    data.trainer.world_size = 6
    with pytest.raises(DataError, match=r"need batch_size \* processes = "):
        data.train_dataloader()


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch):
        x, c = batch
        assert x.dtype == torch.float32 and x.max() <= 1
        self.seen.append(c.tolist())
        return self.weight * x.mean()

    def validation_step(self, batch):
        assert batch[0].dtype == torch.float32

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_under_lightning(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    data, model = make(tmp_path), Model()
    trainer = Trainer(max_epochs=2, enable_checkpointing=False, **quiet)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    assert len(model.seen) == 10 and model.seen[:5] != model.seen[5:]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["datamodule_hyper_parameters"]["data_dir"] == str(tmp_path)

    data.trainer.overfit_batches = 2  # the same batches every epoch
    loader = data.train_dataloader()
    first = [c.tolist() for _, c in loader]
    loader.set_epoch(1)
    assert first == [c.tolist() for _, c in loader]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 16}, "image_size must be >= 28 to pad, got 16: use resize='resize'"),
        ({"val_size": 60}, "val_size must be smaller than the number of images, 60; got 60"),
        ({"val_size": -1}, "val_size and seed >= 0"),
        ({"batch_size": 0}, "batch_size and image_size must be >= 1"),
        ({"resize": "crop"}, "resize='crop'"),
        ({"binarize": "yes"}, "binarize='yes'"),
        ({"batch_size": 51}, r"need batch_size \* processes = 51 training images, got 50: lower batch_size"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    write_idx(tmp_path / "MNIST" / "raw")
    with pytest.raises(DataError, match=message):
        make(tmp_path, **options).train_dataloader()
