"""Pairs of images: both layouts of Cityscapes, any folder, both directions, and what moves together."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from benchmarks.scenes.streets import LABELS, coloured, street, write
from datamodules import Cityscapes, DataError, PairedFolder
from datamodules.cityscapes import CLASSES

SIZE = 32


@pytest.fixture(scope="session")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets")
    for layout in ("pairs", "archives"):
        write(root / layout, layout, {"train": 12, "val": 4}, size=64, seed=0)
    return root


@pytest.fixture
def small(tmp_path):
    return {"image_size": SIZE, "batch_size": 4, "val_size": 2, "cache_dir": str(tmp_path / "cache")}


def first(data, split="test"):
    data.prepare_data()
    data.setup()
    batch = next(iter(getattr(data, f"{split}_dataloader")()))
    return data.on_after_batch_transfer(batch, 0)


def sizes(data):
    """Pairs for training, validation and test."""
    return [data._loader(name).count for name in ("train", "val", "test")]


def save(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


# -- Cityscapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["pairs", "archives"])
@pytest.mark.parametrize("direction", ["labels_to_photo", "photo_to_labels"])
def test_both_layouts_both_ways(layout, direction, streets, small):
    data = Cityscapes(str(streets / layout), direction=direction, **small)
    x, c = first(data)
    assert x.shape == c.shape == (4, 3, SIZE, SIZE) and data.source_channels == 3
    labels, photo = (x, c) if direction == "photo_to_labels" else (c, x)
    assert data.label_side == ("target" if labels is x else "source")
    classes = data.truth("test", torch.arange(4))
    assert torch.equal(data.classes_of(labels)[classes < 19], classes[classes < 19])
    road = next(c.train_id for c in CLASSES if c.name == "road")
    assert (classes[:, -1, SIZE // 2] == road).all()  # what is before the car
    sky = next(c.train_id for c in CLASSES if c.name == "sky")
    blue = photo.movedim(1, -1)[classes == sky].mean(0)
    assert blue[2] > blue[0]
    assert sizes(data) == [10, 2, 4]


def test_the_two_layouts_hold_the_same_scenes(streets, small):
    photos = [first(Cityscapes(str(streets / layout), **small))[0] for layout in ("pairs", "archives")]
    assert_close(photos[0].mean((1, 2, 3)).sort()[0], photos[1].mean((1, 2, 3)).sort()[0], atol=0.01, rtol=0)


def test_ids_colours_and_one_hot_say_the_same(streets, small):
    """And the truth is that of the ids, where the colour of a polegroup is that of a pole."""
    root = str(streets / "archives")
    data = {labels: Cityscapes(root, labels=labels, **small) for labels in ("color", "ids", "one_hot")}
    found = {labels: first(own)[1] for labels, own in data.items()}
    assert [found[name].shape[1] for name in found] == [3, 1, 19]
    truth = [own.truth("test", torch.arange(4)) for own in data.values()]
    assert torch.equal(truth[0], truth[1]) and torch.equal(truth[1], truth[2])
    ids = (found["ids"][:, 0] * 33).round()
    poles, groups = (ids == LABELS[name].id for name in ("pole", "polegroup"))
    assert groups.sum() > 9 and (truth[0][groups] == 255).all() and (truth[0][poles] == LABELS["pole"].train_id).all()
    same = found["color"].movedim(1, -1)
    assert (same[groups] == same[poles][0]).all() and not found["one_hot"].movedim(1, -1)[groups].any()
    one_hot = found["one_hot"]
    assert torch.equal(torch.where(one_hot.any(1), one_hot.argmax(1), 255), truth[0])
    ids = (found["ids"] * 33).round().unique().int().tolist()
    assert set(ids) <= {label.id for label in LABELS.values()}  # never between two of them
    assert set(found["one_hot"].unique().tolist()) == {0.0, 1.0} and (found["one_hot"].sum(1) <= 1).all()


@pytest.mark.parametrize("labels", ["color", "ids", "one_hot"])
def test_the_truth_of_validation_is_that_of_its_pairs(labels, streets, small):
    data = Cityscapes(str(streets / "archives"), labels=labels, **small | {"image_size": 64, "load_size": 64})
    x, _ = first(data, "val")
    road = data.truth("val", torch.arange(2)) == LABELS["road"].train_id
    assert 100 < road.sum() < road.numel() / 2
    assert x.movedim(1, -1)[road].std(1).max() < 0.15  # roads are grey
    other = data.truth("val", torch.tensor([1]))
    assert torch.equal(other[0] == LABELS["road"].train_id, road[1]) and not torch.equal(road[0], road[1])


def test_a_licence_plate_that_is_labelled_counts_as_nothing(streets, small, tmp_path):
    """Its id is -1, which no 8 bits hold."""
    shutil.copytree(streets / "archives", tmp_path / "archives")
    for path in (tmp_path / "archives" / "gtFine").rglob("*_labelIds.png"):
        ids = np.array(Image.open(path))
        ids[:32] = 255
        save(path, ids)
    for labels in ("color", "ids", "one_hot"):
        data = Cityscapes(str(tmp_path / "archives"), labels=labels, **small)
        _, c = first(data)
        assert (data.truth("test", torch.arange(4))[:, :16] == 255).all() and c.min() >= 0 and c.max() <= 1


def test_labels_are_never_mixed_by_scaling(streets, small):
    data = Cityscapes(str(streets / "archives"), **small)
    _, c = first(data, "train")
    assert torch.cdist(c.movedim(1, -1).reshape(-1, 3), data.palette).amin(1).max() == 0


def test_classes_that_are_not_evaluated_do_not_count(streets, small):
    data = Cityscapes(str(streets / "archives"), **small)
    black = torch.zeros(1, 3, 2, 2)
    assert (data.classes_of(black) == 255).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda root, s: Cityscapes(str(root / "pairs"), labels="ids", **s),
            "labels='ids' needs the official archives",
        ),
        (lambda root, s: Cityscapes(str(root), **s), "put the unpacked leftImg8bit and gtFine there"),
        (lambda root, s: Cityscapes(direction="photo_to_labels", labels="ids", **s), "labels must be 'color' to be"),
        (lambda root, s: Cityscapes(direction="both", **s), "direction must be .*; got direction='both'"),
        (lambda root, s: Cityscapes(load_size=8, **s), "need 1 <= image_size <= load_size"),
    ],
)
def test_what_cannot_be_is_said(make, message, streets, small):
    with pytest.raises(DataError, match=message):
        make(streets, small).prepare_data()


def test_missing_halves_of_the_archives_are_named(streets, small, tmp_path):
    root = tmp_path / "broken"
    shutil.copytree(streets / "archives", root)
    lost = next((root / "gtFine" / "train").rglob("*_color.png"))
    lost.unlink()
    with pytest.raises(DataError, match=f"1 files of labels are missing: .*{lost.name}"):
        Cityscapes(str(root), **small).prepare_data()
    photo = next((root / "leftImg8bit" / "train").rglob(f"{lost.name.removesuffix('_gtFine_color.png')}*"))
    photo.unlink()  # now neither is there
    alone = next((root / "leftImg8bit" / "val").rglob("*.png"))
    alone.unlink()
    with pytest.raises(
        DataError, match=f"1 files of labels have no image: .*{alone.name.removesuffix('_leftImg8bit.png')}"
    ):
        Cityscapes(str(root), **small).prepare_data()
    shutil.rmtree(root / "gtFine")
    with pytest.raises(DataError, match="train in both leftImg8bit and gtFine: unpack the two archives there"):
        Cityscapes(str(root), **small).prepare_data()


# -- any folder ------------------------------------------------------------------------------------


def board(colour, size=20):
    """A checkerboard of fields of 5 pixels in one channel."""
    y, x = np.mgrid[:size, :size] // 5
    levels = np.zeros((size, size, 3), np.uint8)
    levels[..., colour] = 255 * ((x + y) % 2)
    return levels


def fill(root, layout, n=12):
    for i in range(n):
        a, b = board(0), board(1)
        if layout == "side by side":
            save(root / ("train" if i < 10 else "val") / f"{i}.png", np.concatenate([a, b], 1))
        elif layout == "A and B":
            save(root / "A" / f"{i}.png", a)
            save(root / "B" / f"{i}.jpg" if i == 0 else root / "B" / f"{i}.png", b)
        else:
            part = "train" if i < 10 else "test"
            save(root / f"{part}A" / f"{i}.png", a)
            save(root / f"{part}B" / f"{i}.png", b)


@pytest.mark.parametrize("layout", ["side by side", "A and B", "trainA and trainB"])
@pytest.mark.parametrize("direction", ["a_to_b", "b_to_a"])
def test_every_layout_gives_pairs_that_stay_aligned(layout, direction, tmp_path, small):
    fill(tmp_path / "data", layout)
    data = PairedFolder(str(tmp_path / "data"), direction=direction, labels="a", **small | {"image_size": 16})
    assert data.load_size == 18
    moved = set()
    for epoch in range(3):
        data.prepare_data()
        data.setup()
        loader = data.train_dataloader()
        loader.set_epoch(epoch)
        for batch in loader:
            x, c = data.on_after_batch_transfer(batch, 0)
            a, b = (c[:, 0], x[:, 1]) if direction == "a_to_b" else (x[:, 0], c[:, 1])
            # jittered and mirrored alike: where one field is lit, so is the other's
            assert ((a > 0.5) == (b > 0.5)).double().mean() > 0.8 and (a > 0.5).double().std() > 0.3
            moved |= {tuple(image.flatten().tolist()) for image in a}
    assert len(moved) > 8  # corners and mirroring vary


def test_jitter_and_mirroring_follow_the_seed_and_leave_test_alone(tmp_path, small):
    fill(tmp_path / "data", "side by side")

    def epoch(**kwargs):
        data = PairedFolder(str(tmp_path / "data"), **small | {"image_size": 16} | kwargs)
        data.setup()
        return torch.cat([x for x, _ in data.train_dataloader()])

    assert torch.equal(epoch(), epoch()) and not torch.equal(epoch(), epoch(seed=1))
    still = epoch(load_size=16, random_flip=False)
    assert (still == still[:1]).all()  # the same board again and again


def test_an_odd_half_a_missing_half_and_a_broken_one_are_named(tmp_path, small):
    root = tmp_path / "data"
    fill(root, "side by side")
    save(root / "train" / "odd.png", np.zeros((8, 15, 3), np.uint8))
    (root / "train" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of 12 images .*broken\.png.*15x8 pixels cannot be halved"):
        PairedFolder(str(root), **small).prepare_data()
    whole = PairedFolder(str(root), skip_broken=True, **small)
    whole.prepare_data()
    whole.setup()
    assert sum(sizes(whole)[:2]) == 10

    root = tmp_path / "two"
    fill(root, "A and B")
    (root / "B" / "7.png").unlink()
    with pytest.raises(DataError, match=r"(?s)1 images have no counterpart \(12 in .*, 11 in .*7\.png"):
        PairedFolder(str(root), **small).prepare_data()
    shutil.rmtree(root / "B")
    with pytest.raises(DataError, match=r"needs a folder .*of side B: add it"):
        PairedFolder(str(root), **small).prepare_data()
    with pytest.raises(DataError, match="there is no folder"):
        PairedFolder(str(tmp_path / "nowhere"), **small).prepare_data()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no pairs"):
        PairedFolder(str(tmp_path / "empty"), **small).prepare_data()


def test_sides_of_two_shapes_and_two_formats_of_one_name_are_named(tmp_path, streets, small):
    fill(tmp_path / "data", "A and B")
    save(tmp_path / "data" / "A" / "3.png", np.zeros((20, 60, 3), np.uint8))
    with pytest.raises(DataError, match=r"1 of 11 images .*3\.png .*60x20 and 20x20 pixels differ in aspect ratio"):
        PairedFolder(str(tmp_path / "data"), **small | {"val_size": 0}, seed=1).prepare_data()
    save(tmp_path / "data" / "A" / "3.bmp", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"A has images of the same name in several formats: 3\.bmp"):
        PairedFolder(str(tmp_path / "data"), **small).prepare_data()
    for layout, path, message in (
        ("pairs", "val/1.png", "40x30 pixels are not two squares"),
        (
            "archives",
            "leftImg8bit/val/drawn/drawn_000000_000000_leftImg8bit.png",
            "the photo is 40x30, its labels 64x64",
        ),
    ):
        shutil.copytree(streets / layout, tmp_path / layout)
        changed = next((tmp_path / layout).glob(path.replace("drawn_000000_000000", "*").replace("drawn/", "*/")), None)
        save(changed or tmp_path / layout / path, np.zeros((30, 40, 3), np.uint8))
        with pytest.raises(DataError, match=message):
            Cityscapes(str(tmp_path / layout), **small).prepare_data()


def test_pairs_lie_upright_and_as_deep_as_they_are(tmp_path, small):
    """A photo that was taken upside down, beside its upright other side; 16 bits are scaled and not cut."""
    fill(tmp_path / "data", "A and B")
    ramp = np.repeat(np.arange(20, dtype=np.uint16)[:, None] * 3000, 20, 1)
    for i in range(12):
        image = Image.fromarray((ramp >> 8).astype(np.uint8)).transpose(Image.Transpose.ROTATE_180)
        exif = Image.Exif()
        exif[0x0112] = 3
        image.save(tmp_path / "data" / "A" / f"{i}.png", exif=exif)
        (tmp_path / "data" / "B" / f"{i}.jpg").unlink(missing_ok=True)
        Image.fromarray(ramp).save(tmp_path / "data" / "B" / f"{i}.png")
    x, c = first(PairedFolder(str(tmp_path / "data"), **small | {"image_size": 20}))
    assert_close(x, c, atol=0.01, rtol=0)
    assert x[0, 0, 0, 0] < 0.01 and x[0, 0, -1, 0] > 0.85


def test_the_pairs_of_training_are_decoded_once_whatever_the_split(tmp_path, small, capsys):
    fill(tmp_path / "data", "side by side")

    def train(seed):
        data = PairedFolder(str(tmp_path / "data"), seed=seed, **small)
        data.setup()
        return {tuple(data._rows[name].tolist()) for name in ("train",)}, data

    one, data = train(0)
    cache = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    other, _ = train(1)
    again, data = train(0)
    assert one == again != other and sizes(data)[0] == 8
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert cache.items() <= now.items() and len(now) == len(cache) + 2  # the other held-out pairs


def test_fewer_held_out_pairs_than_processes_are_refused(tmp_path, small, monkeypatch):
    fill(tmp_path / "data", "side by side")
    data = PairedFolder(str(tmp_path / "data"), **small | {"val_size": 1})
    data.setup()
    monkeypatch.setattr(PairedFolder, "_ranks", lambda self: (0, 2))
    with pytest.raises(DataError, match="2 processes need as many validation images, got 1: raise val_size"):
        data.val_dataloader()


def test_a_changed_image_is_decoded_again(tmp_path, small):
    fill(tmp_path / "data", "A and B")
    options = small | {"image_size": 16}
    before = PairedFolder(str(tmp_path / "data"), **options).stored("test")[0]
    for i in range(12):
        save(tmp_path / "data" / "B" / f"{i}.png", np.full((20, 20, 3), 200, np.uint8))
    (tmp_path / "data" / "B" / "0.jpg").unlink()
    after = PairedFolder(str(tmp_path / "data"), **options).stored("test")[0]
    assert not torch.equal(before, after) and (after == 200).all()


# -- drawn streets ---------------------------------------------------------------------------------


def test_streets_have_every_label_and_colours_that_say_which():
    draw = np.random.default_rng(0)
    scenes = [street(64, draw) for _ in range(12)]
    seen = set(np.concatenate([ids.flatten() for _, ids in scenes]).tolist())
    assert seen == {label.id for label in LABELS.values()}
    photo, ids = scenes[0]
    assert photo.shape == (64, 64, 3) and photo.std() > 20
    assert (coloured(ids)[ids == LABELS["road"].id] == LABELS["road"].color).all()
    assert len({LABELS[name].color for name in ("pole", "polegroup")}) == 1
    again = street(64, np.random.default_rng(0))
    assert (again[0] == photo).all() and (again[1] == ids).all()


def test_nothing_is_drawn_over(tmp_path):
    with pytest.raises(FileExistsError):
        write(tmp_path, "pairs", {"train": 1}, 16, 0)
