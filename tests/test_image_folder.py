"""Folders of images: what they may hold, what is refused, and the file that they are decoded into."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DataError, ImageFolder
from datamodules.image_cache import decode


def save(path, size=(20, 16), mode="RGB", level=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode in ("L", "I;16", "P") else (level, level // 2, 255 - level)[: len(mode)]).save(
        path, **options
    )
    return path


@pytest.fixture
def faces(tmp_path):
    """Twenty images of two classes; the first channel is the image's number."""
    for i in range(20):
        save(tmp_path / "faces" / ("smile" if i % 2 else "no smile") / f"{i:02d}.png", level=i)
    return tmp_path / "faces"


def folder(path, stage="fit", **options):
    cache = path.parent / "cache"
    data = ImageFolder(path, **({"image_size": 8, "batch_size": 4, "cache_dir": cache} | options))
    data.prepare_data()
    data.setup(stage)
    return data


def numbers(data, name):
    """The numbers of the images in a loader and their labels."""
    loader = getattr(data, f"{name}_dataloader")()
    x, c = zip(*loader, strict=True)
    return torch.cat(x)[:, 0, 0, 0].tolist(), torch.cat(c).tolist()


def test_classes_are_folders_and_splits_are_drawn_by_the_seed(faces):
    data = folder(faces, val_size=4, test_size=3)
    assert data.classes == ["no smile", "smile"] and data.image_shape == (3, 8, 8)
    seen = {name: numbers(data, name) for name in ("train", "val", "test")}
    assert [len(n) for n, _ in seen.values()] == [12, 4, 3]  # 13 to train on, in whole batches
    for n, c in seen.values():
        assert [i % 2 for i in n] == c
    assert set(seen["val"][0]) & set(seen["test"][0]) == set()
    assert not (set(seen["train"][0]) & set(seen["val"][0] + seen["test"][0]))
    assert numbers(folder(faces, val_size=4, test_size=3), "test") == seen["test"]
    assert numbers(folder(faces, val_size=4, test_size=3, seed=1), "test") != seen["test"]
    assert len(list((faces.parent / "cache").glob("*.npy"))) == 1
    images, labels = data.stored("test")
    assert images[:, 0, 0, 0].tolist() == seen["test"][0] and labels.tolist() == seen["test"][1]


def test_a_flat_folder_has_one_class_and_hidden_files_are_ignored(tmp_path):
    for i in range(6):
        save(tmp_path / "flat" / f"{i}.jpg", quality=95)
    (tmp_path / "flat" / ".DS_Store").write_bytes(b"1")
    (tmp_path / "flat" / "list.csv").write_text("a")
    save(tmp_path / "flat" / ".trash" / "7.png")
    data = folder(tmp_path / "flat", val_size=1, test_size=1)
    assert data.classes == [] and data.train_dataloader().count == 4 and set(numbers(data, "train")[1]) == {0}


def test_folders_train_and_test_are_the_splits(tmp_path):
    for part, n in (("train", 10), ("test", 5)):
        for i in range(n):
            save(tmp_path / "set" / part / "ab"[i % 2] / f"{i}.png", level=100 * (part == "test") + i)
    data = folder(tmp_path / "set", val_size=2)
    assert sorted(numbers(data, "test")[0]) == [100, 101, 102, 103, 104]
    assert max(numbers(data, "train")[0]) < 10 and data.train_dataloader().count == 8
    assert len(data.stored("train")[0]) == 10
    for i in range(3):
        save(tmp_path / "set" / "val" / "ab"[i % 2] / f"{i}.png", level=200 + i)
    data = folder(tmp_path / "set")
    assert sorted(numbers(data, "val")[0]) == [200, 201, 202] and data.train_dataloader().count == 10
    with pytest.raises(DataError, match="leave out test_size"):
        folder(tmp_path / "set", test_size=2)
    save(tmp_path / "set" / "test" / "c" / "0.png")
    with pytest.raises(DataError, match="must have the same classes: only one has c"):
        folder(tmp_path / "set")


@pytest.mark.parametrize(
    "mode, ending", [("L", "png"), ("RGBA", "png"), ("I;16", "png"), ("P", "gif"), ("CMYK", "jpg")]
)
def test_sizes_and_modes_are_brought_to_one(mode, ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    Image.new(mode, (30, 11), {"I;16": 200 * 256 + 7, "L": 200, "P": 200}.get(mode, 200)).save(path)
    for channels in (1, 3):
        levels = decode(path, 8, channels)
        assert levels.shape == (channels, 8, 8) and levels.dtype == np.uint8
        if mode in ("L", "I;16"):
            assert (levels == 200).all()


def test_the_middle_of_the_shorter_side_is_kept_and_cameras_turned(tmp_path):
    image = np.zeros((8, 24), np.uint8)
    image[:, 8:16] = 255
    Image.fromarray(image).save(tmp_path / "wide.png")
    assert (decode(tmp_path / "wide.png", 8, 1) == 255).all()
    picture, exif = Image.fromarray(np.pad(np.full((4, 8), 255, np.uint8), ((0, 4), (0, 0)))), Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    assert decode(tmp_path / "turned.png", 8, 1)[0, -1].min() == 255


def test_broken_images_are_an_error_unless_they_are_to_be_skipped(faces, caplog):
    (faces / "smile" / "01.png").write_bytes(b"no image")
    whole = (faces / "smile" / "03.png").read_bytes()
    (faces / "smile" / "03.png").write_bytes(whole[:40])
    with pytest.raises(DataError, match=r"2 of 20 images cannot be read: .*01.png \(.*03.png \(.*skip_broken"):
        folder(faces)
    with caplog.at_level("INFO"):
        data = folder(faces, skip_broken=True, val_size=2, test_size=0)
    assert "01.png" in caplog.text and data.train_dataloader().count == 16
    assert not {1, 3} & set(numbers(data, "train")[0])
    with pytest.raises(DataError, match="2 of 20"):  # also from the file
        folder(faces)


def test_the_file_is_made_anew_only_when_an_image_changes(faces, caplog):
    def decoded():
        caplog.clear()
        with caplog.at_level("INFO"):
            data = folder(faces, val_size=2, test_size=2)
        return "decoding" in caplog.text, data

    assert decoded()[0] and not decoded()[0]
    path = save(faces / "smile" / "01.png", level=99)
    os.utime(path, ns=(1, 1))
    again, data = decoded()
    assert again and 99 in torch.cat([data.stored(split)[0] for split in ("train", "test")])
    (faces / "smile" / "05.png").unlink()
    assert decoded()[0] and not decoded()[0]
    save(faces / "no smile" / "new.png")
    assert decoded()[0]
    folder(faces, image_size=4)
    assert not decoded()[0]  # another size has a file of its own
    for torn in (faces.parent / "cache").glob("*.json"):
        torn.write_text("{")
    assert decoded()[0]


def test_a_training_never_writes_into_the_file(faces):
    data = folder(faces, random_flip=True)
    (before,) = ((path, path.read_bytes()) for path in (faces.parent / "cache").glob("*.npy"))
    data._sets["train"][0][:] = 7
    assert before[0].read_bytes() == before[1]


def test_what_is_no_folder_of_images_is_named(tmp_path, faces):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no readable images: set data_dir to another folder"):
        folder(tmp_path / "empty")
    save(faces / "loose.png")
    with pytest.raises(DataError, match=r"faces has both images and folders of images \(no smile"):
        folder(faces)
    for wrong, message in (
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"test_size": -1}, "test_size >= 0"),
        ({"image_size": 0}, "image_size must be >= 1"),
    ):
        with pytest.raises(DataError, match=message):
            ImageFolder(str(faces), **wrong)
    with pytest.raises(DataError, match="test_size must be smaller than the number of images, 1; got 99"):
        (faces / "loose.png").rename(tmp_path / "empty" / "a.png")
        folder(tmp_path / "empty", test_size=99)


def test_a_folder_that_cannot_be_read_or_written_is_named(faces, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written .*choose another cache_dir"):
        folder(faces, cache_dir=tmp_path / "file")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(DataError, match=r"faces cannot be read \(Permission denied\): check its permissions"):
        folder(faces)


def test_a_disk_that_is_full_leaves_no_half_a_file(faces, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match="No space left"):
        folder(faces)
    monkeypatch.undo()
    folder(faces)


def anonymous_memory():
    """Bytes of this process that are no file's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="tells memory apart by Linux's own account")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_folder(tmp_path, monkeypatch):
    """An epoch of 30,000 images of 64x64x3, 369 MB, made from one small one."""
    one = save(tmp_path / "many" / "0.png")
    for i in range(1, 30_000):
        os.link(one, tmp_path / "many" / f"{i}.png")
    rows = np.random.default_rng(0).integers(0, 256, (64, 3, 64, 64), np.uint8)
    monkeypatch.setattr("datamodules.image_folder.decode", lambda path, *_: rows[int(path.stem) % 64])
    before = anonymous_memory()
    data = folder(tmp_path / "many", image_size=64, batch_size=128, random_flip=True)
    total = sum(len(x) for x, _ in data.train_dataloader())
    assert total == data.train_dataloader().count // 128 * 128
    assert anonymous_memory() - before < 100e6


def test_a_checkpoint_names_the_folder_and_loads(faces, tmp_path):
    from lightning.pytorch import Trainer

    from lit_generative.checkpoints.load import data_config, read_checkpoint
    from lit_generative.models.vae import VAE

    data = ImageFolder(faces, 8, batch_size=4, cache_dir=tmp_path / "cache")
    trainer = Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, accelerator="cpu", log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(VAE((3, 8, 8), hidden=(4,)), datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = ImageFolder(**data_config(read_checkpoint(tmp_path / "a.ckpt"))["init_args"])
    assert again.data_dir == faces and again.image_shape == (3, 8, 8)


def test_transparency_is_on_white_and_32_bits_are_refused(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (decode(tmp_path / "clear.png", 8, 3) == 255).all()
    Image.new("F", (8, 8), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="32-bit pixels"):
        decode(tmp_path / "float.tif", 8, 1)


def test_a_torn_file_is_made_anew(faces):
    folder(faces)
    (file,) = (faces.parent / "cache").glob("*.npy")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    folder(faces)
    assert file.read_bytes() == whole


def test_labels_are_known_without_the_images(faces):
    data = folder(faces, test_size=3)
    for split in ("train", "test"):
        assert torch.equal(data.labels_of(split), data.stored(split)[1])
    assert sorted(data.labels_of("train").tolist() + data.labels_of("test").tolist()) == [0] * 10 + [1] * 10
