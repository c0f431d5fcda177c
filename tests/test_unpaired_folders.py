"""Two folders of images that are not pairs: splits, orders, and where a resumed training goes on."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from stubs import trainer

from callbacks import TranslationGrid, TranslationScores
from datamodules import DataError, FashionMNIST, UnpairedFolders
from lit_generative.models import CycleGAN, Pix2Pix

SIZE = 8


def fill(root, **numbers):
    """Grey images whose levels say which they are: side b has odd ones."""
    for name, count in numbers.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True)
        for i in range(count):
            level = 2 * i + ("B" in name)
            Image.fromarray(np.full((9, 12, 3), level, np.uint8)).save(folder / f"{i:03}.png")


@pytest.fixture
def unpaired(tmp_path):
    def make(**options):
        small = {"image_size": SIZE, "batch_size": 2, "random_flip": False, "cache_dir": str(tmp_path / "cache")}
        data = UnpairedFolders(str(tmp_path / "set"), **small | options)
        data.prepare_data()
        data.setup()
        return data

    return make


def levels(loader):
    """Levels of targets and of sources, batch by batch."""
    return [(x[:, 0, 0, 0].tolist(), c[:, 0, 0, 0].tolist()) for x, c in loader]


def epochs(loader, n):
    found = []
    for epoch in range(n):
        loader.sampler.set_epoch(epoch)
        found.append(levels(loader))
    return found


def test_sides_and_splits_of_folders(unpaired, tmp_path, caplog):
    fill(tmp_path / "set", trainA=20, trainB=30, testA=4, testB=2)
    data = unpaired(val_size=3)
    assert data.sizes() == {"train": 27, "val": 3, "test": 4}
    assert (
        "2 targets and 4 sources of UnpairedFolders, not pairs, the fewer repeated, 8x8, a_to_b" in data.describe_test()
    )
    x, c = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert x.shape == c.shape == (2, 3, SIZE, SIZE) and x.dtype == c.dtype == torch.float32
    assert all(n % 2 == 1 for n in (x[:, 0, 0, 0] * 255).round().int().tolist())  # b is the target
    reverse = unpaired(val_size=3, direction="b_to_a")
    assert all(n % 2 == 0 for x, c in levels(reverse.train_dataloader()) for n in x)
    assert len(data.stored("train")[0]) == 27 and len(reverse.stored("test")[0]) == 4


@pytest.mark.parametrize("layout", ["{}", "train__{}", "{}__train"])
def test_test_images_are_held_out_where_there_are_none(layout, unpaired, tmp_path):
    fill(tmp_path / "set", **{layout.format("A"): 20, layout.format("B"): 40})
    data = unpaired()
    assert data.sizes() == {"train": 33, "val": 3, "test": 4}
    held_out = [levels(data.val_dataloader()), levels(data.test_dataloader())]
    trained = [batch for epoch in epochs(data.train_dataloader(), 2) for batch in epoch]
    parts = [{n for x, c in found for n in x + c} for found in (*held_out, trained)]
    assert sum(map(len, parts)) == len(set.union(*parts)) and len(parts[1]) == 2 + 4


def test_an_epoch_is_one_of_the_larger_side_and_all_images_come_equally_often(unpaired, tmp_path):
    fill(tmp_path / "set", trainA=12, trainB=20, testA=1, testB=1)
    data = unpaired(val_size=0)
    loader = data.train_dataloader()
    assert len(loader) == 10 and data.val_dataloader() == []
    found = [batch for epoch in epochs(loader, 3) for batch in epoch]
    targets, sources = (Counter(n for batch in found for n in batch[i]) for i in range(2))
    assert set(targets.values()) == {3} and len(targets) == 20
    assert set(sources.values()) == {5} and len(sources) == 12


def test_equal_numbers_do_not_make_pairs(unpaired, tmp_path):
    fill(tmp_path / "set", trainA=40, trainB=40, testA=1, testB=1)
    found = [batch for epoch in epochs(unpaired(val_size=0).train_dataloader(), 10) for batch in epoch]
    together = [x - 1 == c for xs, cs in found for x, c in zip(xs, cs, strict=True)]
    assert 0 < sum(together) < 30  # 10 are expected of 400


@pytest.mark.parametrize("sizes", [(12, 20), (20, 12), (14, 14)])
@pytest.mark.parametrize("position", [1, 7, 23])
def test_a_loader_goes_on_where_another_stopped(sizes, position, unpaired, tmp_path):
    fill(tmp_path / "set", trainA=sizes[0], trainB=sizes[1], testA=1, testB=1)
    data = unpaired(val_size=0)
    whole = [batch for epoch in epochs(data.train_dataloader(), 4) for batch in epoch]
    loader = data.train_dataloader()
    epoch, within = divmod(position, len(loader))
    loader.sampler.set_epoch(epoch)
    batches = iter(loader)
    for _ in range(within):
        next(batches)
    state = loader.state_dict()
    again = data.train_dataloader()
    again.load_state_dict(state)
    again.sampler.set_epoch(epoch)
    assert levels(again) == whole[position : (epoch + 1) * len(loader)]


def test_in_test_the_first_stand_beside_the_first(unpaired, tmp_path):
    fill(tmp_path / "set", trainA=4, trainB=4, testA=5, testB=3)
    found = levels(unpaired(val_size=1).test_dataloader())
    assert found == [([1, 3], [0, 2]), ([5, 1], [4, 6]), ([3], [8])]


def test_processes_share_the_images(unpaired, tmp_path, monkeypatch):
    fill(tmp_path / "set", trainA=24, trainB=16, testA=1, testB=1)
    one = levels(unpaired(val_size=0, batch_size=4).train_dataloader())
    halves = []
    for rank in range(2):
        monkeypatch.setattr(UnpairedFolders, "_ranks", lambda self, rank=rank: (rank, 2))
        halves.append(levels(unpaired(val_size=0, batch_size=2).train_dataloader()))
    both = [(x + y, c + d) for (x, c), (y, d) in zip(*halves, strict=True)]
    assert both == one


def test_too_few_images_of_one_side_are_named(unpaired, tmp_path):
    fill(tmp_path / "set", trainA=20, trainB=3, testA=1, testB=1)
    with pytest.raises(DataError, match=r"batch_size \* processes = 4 training images, got 2: lower batch_size"):
        unpaired(val_size=1, batch_size=4).train_dataloader()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"trainA": 4}, "trainA needs a folder of images of side B: add it"),
        ({"train": 4}, "must have a folder of each side, such as trainA and trainB; it has images in .*train"),
        ({"cats": 4, "dogs": 4}, "such as trainA and trainB; it has 4 images in cats, 4 images in dogs"),
        ({"A": 9, "B": 2}, "must have >= 3 images of each side, for .* test; got 9 of side a and 2 of side b"),
        ({"testA": 4, "testB": 4}, "has folders for test, but none for training"),
    ],
)
def test_other_layouts_are_explained(numbers, message, unpaired, tmp_path):
    fill(tmp_path / "set", **numbers)
    with pytest.raises(DataError, match=message):
        unpaired()


def test_images_that_cannot_be_read_are_left_out_on_demand(unpaired, tmp_path):
    fill(tmp_path / "set", trainA=6, trainB=6, testA=2, testB=2)
    (tmp_path / "set" / "trainA" / "002.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 6 images cannot be read: .*002.png"):
        unpaired(val_size=0)
    data = unpaired(val_size=0, skip_broken=True)
    assert {n for x, c in levels(data.train_dataloader()) for n in c} <= {0, 2, 6, 8, 10} and data.sizes()["train"] == 6


def test_what_needs_pairs_refuses_what_are_none(unpaired, data_dir, tmp_path):
    fill(tmp_path / "set", trainA=6, trainB=6, testA=2, testB=2)
    data, small = unpaired(), {"image_shape": (3, SIZE, SIZE), "width": 4, "patch": 1}
    run = trainer(tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match="Pix2Pix learns from pairs of images, and UnpairedFolders has none: choose"):
        run.fit(Pix2Pix(**small, num_downs=2), datamodule=data)
    model = CycleGAN(**small, blocks=1)
    with pytest.raises(ValueError, match="images of UnpairedFolders are not pairs: remove it, or test on pairs"):
        trainer(tmp_path, max_epochs=1, callbacks=[TranslationScores()]).fit(model, datamodule=data)
    digits = FashionMNIST(str(data_dir), batch_size=2)
    digits.image_shape = (3, SIZE, SIZE)
    with pytest.raises(ValueError, match="CycleGAN learns from source and target images, and FashionMNIST has none"):
        run.fit(model, datamodule=digits)


def test_a_grid_of_what_are_no_pairs_has_no_targets(unpaired, tmp_path):
    fill(tmp_path / "set", trainA=6, trainB=6, testA=2, testB=2)
    model = CycleGAN((3, SIZE, SIZE), width=4, blocks=1, patch=1)
    run = trainer(tmp_path, callbacks=[TranslationGrid(n=2)])
    run.test(model, datamodule=unpaired(), verbose=False)
    (path,) = tmp_path.glob("**/translations*.png")
    with Image.open(path) as image:
        assert 2 * SIZE <= image.width < 3 * SIZE
