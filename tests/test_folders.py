"""Folders as people have them: names of splits, files of every format, links, and what is left out."""

import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.scenes.streets import write
from datamodules import Cityscapes, DataError, ImageFolder, PairedFolder, Pictures
from datamodules.folders import find_splits, is_image, split_of
from datamodules.image_cache import decode, highest_level, open_image


def save(path, level=0, size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path, **options)
    return path


def fill(folder, count, first=0, ending="png"):
    for i in range(count):
        save(folder / f"{i}.{ending}", first + i)


def load(root, **options):
    data = ImageFolder(root, 8, cache_dir=root.parent / "cache", **options)
    data.prepare_data()
    data.setup()
    return data


def levels(data, split):
    """The first level of every image of a split: tests number their images by it."""
    images, rows = data._sets[split][0], data._rows[split]
    return sorted(images[rows][:, 0, 0, 0].tolist())


def paired(root, **options):
    data = PairedFolder(root, 8, **({"val_size": 1, "load_size": 8, "cache_dir": root.parent / "cache"} | options))
    data.prepare_data()
    data.setup()
    return data


# -- splits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["validation", "valid", "Val", "dev", "eval"])
def test_usual_names_of_splits_are_splits_and_no_classes(train, val, tmp_path, caplog):
    root = tmp_path / "set"
    fill(root / train / "a", 4)
    fill(root / val / "a", 3, first=100)
    data = load(root, val_size=1)
    assert data.classes == ["a"] and levels(data, "test") == [100, 101, 102]
    assert len(levels(data, "train")) == 3 and max(levels(data, "train") + levels(data, "val")) < 10
    assert f"4 images in {train} for training, 3 images in {val} for test, of 1 classes (a)" in caplog.text
    fill(root / "Test" / "a", 2, first=200)
    data = load(root)
    assert [levels(data, split) for split in ("train", "val", "test")] == [
        [0, 1, 2, 3],
        [100, 101, 102],
        [200, 201],
    ]


def test_a_folder_for_training_alone_gives_all_three_splits(tmp_path):
    fill(tmp_path / "set" / "train" / "cat", 6)
    fill(tmp_path / "set" / "train" / "dog", 6, first=100)
    data = load(tmp_path / "set", test_size=3)
    assert data.classes == ["cat", "dog"] and [len(levels(data, s)) for s in ("train", "val", "test")] == [8, 1, 3]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "bus", "car"), r"look like splits \(train\) next to bus, car: .* if they are classes, rename them"),
        (("train", "val", "test2017"), r"look like splits \(train, val, test2017\)"),
        (("train2017", "val2017"), r"look like splits \(train2017, val2017\)"),
        (("seg_train", "seg_test", "seg_pred"), r"look like splits \(seg_test, seg_train\) next to seg_pred"),
        (("TrainSet", "TestSet"), "look like splits"),
        (("train", "val", "valid"), r"two folders for one split \(train, val, valid\)"),
        (("test", "val"), "folders for test and val, but none for training"),
        (
            ("archive/train", "archive/test"),
            r"archive would be a class, .*: set data_dir to .*archive, or",
        ),
        (("bottle/train", "cable/train"), "would be a class, but has a folder train that looks like a split"),
    ],
)
def test_what_looks_like_splits_is_never_taken_for_classes(folders, message, tmp_path):
    for name in folders:
        fill(tmp_path / "set" / name, 2)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set")


def test_a_split_whose_folder_is_empty_is_not_drawn_from_another(tmp_path):
    for name in ("set/train/a", "pairs/trainA", "pairs/trainB"):
        fill(tmp_path / name, 4)
    for name in ("set/Test/a", "pairs/testA", "pairs/testB"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.heic").write_text("")
    with pytest.raises(DataError, match=r"set has no readable images in Test \(1 \.heic; "):
        load(tmp_path / "set")
    with pytest.raises(DataError, match=r"pairs has no readable images in testA, testB \(2 \.heic; "):
        paired(tmp_path / "pairs")


def test_words_in_the_names_of_a_few_classes_are_no_splits(tmp_path):
    assert find_splits(tmp_path, ["bullet train", "flask", "goldfish", "test tube"]) == {}
    assert [split_of(name) for name in ("Validation", "trains", "value")] == ["val", None, None]


def test_what_lies_beside_splits_is_counted(tmp_path, caplog):
    for name, count in (("train", 4), ("test", 2), ("unlabelled", 3)):
        fill(tmp_path / "set" / name, count)
    save(tmp_path / "set" / "preview.png")
    (tmp_path / "set" / "train" / "labels.csv").write_text("a")
    load(tmp_path / "set", val_size=1)
    assert "set: 1 .csv, 1 images in it, 3 images in unlabelled" in caplog.text
    assert caplog.text.count("left out of") == 1


def test_classes_that_look_alike_in_unicode_are_the_same(tmp_path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        fill(tmp_path / "set" / split / unicodedata.normalize(form, "café"), 3)
    assert load(tmp_path / "set", val_size=1).classes == [unicodedata.normalize("NFC", "café")]


def test_few_images_leave_no_split_empty(tmp_path):
    fill(tmp_path / "set", 4)
    data = load(tmp_path / "set")
    assert [len(levels(data, split)) for split in ("train", "val", "test")] == [2, 1, 1]


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jfif", "avif", "JPE", "tga", "jp2", "ico", "Png"])
def test_what_pillow_reads_is_read(ending, tmp_path):
    fill(tmp_path / "set" / "a", 3)
    for i in range(3):
        Image.new("RGB", (16, 16), "white").save(tmp_path / "set" / "a" / f"more{i}.{ending}")
    assert len(load(tmp_path / "set")._opened[1]) == 6


def test_what_is_left_out_is_counted_and_classes_that_vanish_are_named(tmp_path, caplog):
    fill(tmp_path / "set" / "cat", 4)
    for name in ("dog/a.heic", "dog/b.HEIC", "cat/movie.mpg", "cat/drawing.eps", "cat/notes", "cat/.hidden.txt"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_text("")
    (tmp_path / "set" / "bird").mkdir()
    load(tmp_path / "set")
    for part in ("2 .heic", "1 .mpg", "1 .eps", "1 without an extension", "no images in bird, dog"):
        assert part in caplog.text
    with pytest.raises(DataError, match=r"dog has no readable images \(it has 2 \.heic\)"):
        load(tmp_path / "set" / "dog")


def test_ghostscript_is_never_run_whatever_a_file_is_called(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    assert not is_image(tmp_path / "a.eps")
    with pytest.raises(ValueError, match="cannot identify image file"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pgm_of_16_bits_has_the_levels_of_a_png(channels, tmp_path):
    image = Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8))
    for ending in ("pgm", "png"):
        image.save(tmp_path / f"a.{ending}")
    (tmp_path / "plain.pgm").write_text(f"P2 8 8 65535 {' '.join(map(str, np.asarray(image).flatten()))}")
    wanted = decode(tmp_path / "a.png", 8, channels)
    for name in ("a.pgm", "plain.pgm"):
        assert (decode(tmp_path / name, 8, channels) == wanted).all()
    assert wanted.min() == 0 and wanted.max() == 255


def test_16_bits_that_would_become_black_are_named_every_time(tmp_path):
    for i, top in enumerate([4095, 4096, 65535, 0]):
        levels = np.zeros((8, 8), np.uint16)
        levels[:, 2:6] = top
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(levels).save(tmp_path / "set" / f"{i}.png")
    for _ in range(2):  # decoded, and from the file
        with pytest.warns(UserWarning, match=r"^1 16-bit images .*nearly black: \S*0\.png \(up to 4,095\);"):
            load(tmp_path / "set")
    for i in range(4):
        save(tmp_path / "pairs" / "A" / f"{i}.png", 200)
        (tmp_path / "pairs" / "B").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 900, np.uint16)).save(tmp_path / "pairs" / "B" / f"{i}.png")
    with pytest.warns(UserWarning, match=r"16-bit images use few .*B/\d\.png \(up to 900\)"):
        paired(tmp_path / "pairs")


def test_16_bits_of_colour_that_would_become_black_are_named(tmp_path):
    """Pillow reads these as 8 bits, the upper ones."""
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    row = b"\0" + np.full(24, 2000, ">u2").tobytes()
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b""))
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert highest_level(tmp_path / "a.png") == 2047 and highest_level(save(tmp_path / "b.png", 7)) is None


# -- links and what cannot be read -----------------------------------------------------------------


def test_links_to_folders_are_read_at_any_depth(tmp_path):
    fill(tmp_path / "elsewhere", 3, first=100)
    fill(tmp_path / "set" / "a", 3)
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="3 images in .* are links to files outside it"):
        data = load(tmp_path / "set")
    assert len(data._opened[1]) == 6


@pytest.mark.parametrize("target", ["", "a"])
def test_a_folder_that_comes_twice_by_a_link_is_named(target, tmp_path, caplog):
    fill(tmp_path / "set" / "a", 4)
    (tmp_path / "set" / "z").symlink_to(tmp_path / "set" / target)
    with pytest.raises(
        DataError, match=rf"set/z is a link to \S*{target or 'set'}, whose images would be counted twice"
    ):
        load(tmp_path / "set")
    data = load(tmp_path / "set", skip_broken=True)
    assert data.classes == ["a"] and len(data._opened[1]) == 4 and "left out: " in caplog.text


def test_links_to_nowhere_are_named_or_skipped(tmp_path, caplog):
    fill(tmp_path / "set" / "a", 4)
    (tmp_path / "set" / "a" / "lost.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "set" / "a" / "round.png").symlink_to("round.png")
    with pytest.raises(DataError, match=r"2 of 6 images cannot be read: \S*lost\.png \(.*No such file.*round\.png"):
        load(tmp_path / "set")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"set/b is a link to \S*gone, which does not exist: remove it"):
        load(tmp_path / "set")
    data = load(tmp_path / "set", skip_broken=True)
    assert sorted(level for split in ("train", "val", "test") for level in levels(data, split)) == [0, 1, 2, 3]
    assert "lost.png" in caplog.text and "set/b is a link" in caplog.text


def test_an_unreadable_class_is_named_and_never_dropped(tmp_path, monkeypatch, caplog):
    for name in "abc":
        fill(tmp_path / "set" / name, 3)
    (tmp_path / "set" / "b" / "deep").mkdir()
    real = type(tmp_path).iterdir

    def refuse(path):
        if path.name == "deep":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(DataError, match=r"b/deep cannot be read \(Permission denied\): check its permissions"):
        load(tmp_path / "set")
    assert load(tmp_path / "set", skip_broken=True).classes == ["a", "b", "c"] and "b/deep cannot be" in caplog.text


def test_long_lists_are_capped(tmp_path, caplog):
    fill(tmp_path / "set", 4)
    for i in range(25):
        (tmp_path / "set" / f"broken{i:02d}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"25 of 29 images .*broken09\.png .*; \.\.\. \(25 in all\)") as error:
        load(tmp_path / "set")
    load(tmp_path / "set", skip_broken=True)
    assert "broken10" not in str(error.value) + caplog.text and "25 images are left out" in caplog.text


# -- pairs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    ["{split}/{side}", "{side}/{split}", "{split}{side}", "{split}_{side}", "{side}/{split}/", "set/../{split}/{side}"],
)
def test_the_layouts_of_pairs_that_people_have_are_known(layout, tmp_path):
    for split, side, level in (("train", "A", 0), ("train", "B", 50), ("Test", "a", 100), ("Test", "b", 150)):
        (tmp_path / "pairs" / "set").mkdir(parents=True, exist_ok=True)
        fill(tmp_path / "pairs" / layout.format(split=split, side=side), 4, first=level)
    (tmp_path / "pairs" / "set").rmdir()
    data = paired(tmp_path / "pairs")
    assert data.sizes() == {"train": 3, "val": 1, "test": 4}
    pixels = data._sets["test"][0][:, :, 0, 0]
    assert pixels[:, 0].tolist() == [100, 101, 102, 103] and pixels[:, 3].tolist() == [150, 151, 152, 153]


def test_pairs_for_training_alone_give_all_three_splits(tmp_path):
    for side in "AB":
        fill(tmp_path / "pairs" / f"train{side}", 5)
    assert paired(tmp_path / "pairs").sizes() == {"train": 3, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("testA", "testB"), "folders for test, but none for training"),
        (("trainA", "testA", "testB"), "trainA needs a folder of images of side B: add it"),
        (("input", "target"), r"no pairs \(it has 4 images in input, 4 images in target\): .* folders A and B "),
        (("trainA", "trainB", "train/A"), "train/A and .*trainA are for the same images: keep one of them"),
    ],
)
def test_layouts_that_are_not_known_are_hinted_at(folders, message, tmp_path):
    for name in folders:
        fill(tmp_path / "pairs" / name, 4)
    with pytest.raises(DataError, match=message):
        paired(tmp_path / "pairs")


def test_what_is_not_in_a_pair_is_counted(tmp_path, caplog):
    for name in ("A", "B", "A/old", "previews"):
        fill(tmp_path / "pairs" / name, 4)
    save(tmp_path / "pairs" / "both.png")
    (tmp_path / "pairs" / "A" / "readme.txt").write_text("a")
    assert sum(paired(tmp_path / "pairs").sizes().values()) == 4
    for part in ("1 .txt", "1 images in it", "4 images in A/old", "4 images in previews"):
        assert part in caplog.text


def test_names_that_look_alike_in_unicode_make_a_pair(tmp_path):
    for i in range(4):
        for side, form in (("A", "NFC"), ("B", "NFD")):
            save(tmp_path / "pairs" / side / f"{unicodedata.normalize(form, 'é')}{i}.png")
    assert sum(paired(tmp_path / "pairs").sizes().values()) == 4


def test_half_a_pair_that_is_a_link_to_nowhere_can_be_skipped(tmp_path):
    for side in "AB":
        fill(tmp_path / "pairs" / side, 4)
    (tmp_path / "pairs" / "B" / "0.png").unlink()
    (tmp_path / "pairs" / "B" / "0.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"B/0\.png \(.*No such file"):
        paired(tmp_path / "pairs")
    assert sum(paired(tmp_path / "pairs", skip_broken=True).sizes().values()) == 3


def test_a_folder_of_pictures_counts_what_it_leaves_out(tmp_path, caplog):
    fill(tmp_path / "photos", 2, ending="jfif")
    fill(tmp_path / "photos" / "older", 2)
    (tmp_path / "photos" / "a.heic").write_text("")
    data = Pictures(tmp_path / "photos")
    data.setup("predict")
    assert len(data.paths) == 2 and "1 folders" in caplog.text and "1 .heic" in caplog.text


# -- Cityscapes ------------------------------------------------------------------------------------


def test_the_archives_may_hold_hidden_files_and_others(tmp_path, caplog):
    write(tmp_path / "city", "archives", {"train": 4, "val": 2}, size=16, seed=0)
    for kind in ("leftImg8bit", "gtFine"):
        for name in (".DS_Store", "license.txt", "drawn/.DS_Store", "drawn/._x_gtFine_color.png", "drawn/Thumbs.db"):
            (tmp_path / "city" / kind / "train" / name).write_text("")
    save(tmp_path / "city" / "leftImg8bit" / "train" / "drawn" / "overview.png")
    data = Cityscapes(tmp_path / "city", 16, val_size=1, cache_dir=tmp_path / "cache")
    data.prepare_data()
    data.setup()
    assert data.sizes() == {"train": 3, "val": 1, "test": 2}
    assert "1 .txt, 1 .db, 1 images in drawn" in caplog.text


def test_layout_and_content_of_the_archives_are_matched(tmp_path):
    """The photo and its labels, by city and name, as the official layout has them."""
    write(tmp_path / "city", "archives", {"train": 4, "val": 2}, size=16, seed=0)
    data = Cityscapes(tmp_path / "city", labels="ids", cache_dir=tmp_path / "cache")
    for photo, ids in data.find_pairs()["train"]:
        stem = photo.name.removesuffix("_leftImg8bit.png")
        assert ids == tmp_path / "city" / "gtFine" / "train" / "drawn" / f"{stem}_gtFine_labelIds.png" and ids.is_file()
