"""Where the files of a data set come from, and which are refused. No network, made-up files."""

import hashlib
import os

import pytest
import torch
from data_files import idx, images, isolate, make, write_idx
from torchvision import datasets

from datamodules import KMNIST, MNIST, DataError, FashionMNIST, mnist
from lit_generative.images import from_uint8


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


# ---- where files come from


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cls", [MNIST, FashionMNIST, KMNIST])
def test_torchvision_layout(tmp_path, cls, packed):
    write_idx(tmp_path / cls.__name__ / "raw", packed=packed)
    data = make(tmp_path, cls, None)
    assert [len(images(data, split)) for split in ("train", "val", "test")] == [50, 10, 20]
    assert (data.name, data.image_shape, data.num_levels, data.num_classes) == (cls.__name__, (1, 28, 28), 256, 10)
    order = torch.cat([images(data, "train"), images(data, "val")])[:, 0, 0, 0].long()
    labels = torch.cat([data._sets["train"][1], data._sets["val"][1]])
    assert torch.equal(labels, order % 10)


def test_data_dir_from_the_environment_and_home(tmp_path, monkeypatch):
    assert str(MNIST().data_dir) == "data"
    monkeypatch.setenv("LIT_GENERATIVE_DATA", "~/images")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert MNIST().data_dir == tmp_path / "images" and MNIST().hparams["data_dir"] is None
    data = MNIST(tmp_path)  # a Path becomes a plain string, so that checkpoints load safely
    assert data.data_dir == tmp_path and data.hparams["data_dir"] == str(tmp_path)


def test_order_of_sources(tmp_path, monkeypatch, caplog):
    def level(data):
        return int(images(data, "test")[0, 0, 1, 1])

    def fake(root, download):
        assert download
        write_idx(root / "FashionMNIST" / "raw", level=3)

    monkeypatch.setattr(datasets, "FashionMNIST", fake)
    options = {"cls": FashionMNIST, "stage": "test", "download": True, "bundled": True}
    assert level(make(tmp_path / "a", **options)) == 3
    write_idx(tmp_path / "debian", packed=True, level=2)
    assert level(make(tmp_path / "b", **options)) == 2
    write_idx(tmp_path / "b" / "FashionMNIST" / "raw", level=1)
    assert level(make(tmp_path / "b", **options)) == 1
    assert "bundled" not in caplog.text


def test_bundled_subset_is_the_last_resort(tmp_path, caplog):
    data = make(tmp_path, FashionMNIST, None, bundled=True, download=True, val_size=0)
    lines = [record.message for record in caplog.records if "bundled" in record.message]
    assert len(lines) == 1 and "10,000 training and 2,000 test" in lines[0]
    assert images(data, "train").shape == (10_000, 1, 28, 28) and images(data, "test").shape == (2000, 1, 28, 28)
    assert abs(from_uint8(images(data, "train")).mean() - 0.2860) < 0.01
    assert len(images(make(tmp_path, FashionMNIST, bundled=True), "val")) == 1666
    assert sum(path.stat().st_size for path in FashionMNIST.bundle.iterdir()) < 6e6

    with pytest.raises(DataError, match="no bundled subset of MNIST"):
        make(tmp_path, MNIST, bundled=True)
    with pytest.raises(DataError, match=r"was not found.*train-images-idx3-ubyte.*LIT_GENERATIVE_DATA"):
        make(tmp_path, FashionMNIST)


def test_a_failed_download_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"MNIST/raw failed.*no network here.*train-images.*LIT_GENERATIVE_DATA"):
        make(tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []

    def half(root, download):
        write_idx(root / "MNIST" / "raw", ["train"])
        raise RuntimeError("File not found or corrupted.")  # torchvision's words for a wrong checksum

    monkeypatch.setattr(datasets, "MNIST", half)
    with pytest.raises(DataError, match="corrupted"):
        make(tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/MNIST/raw"):
        make(tmp_path / "file", download=True)


def test_download_is_moved_into_place_whole_and_once(tmp_path, monkeypatch):
    calls = []

    def fake(root, download):
        calls.append(root)
        assert root.parent == tmp_path and not (tmp_path / "MNIST").exists()
        write_idx(root / "MNIST" / "raw")

    monkeypatch.setattr(datasets, "MNIST", fake)
    for _ in range(2):
        make(tmp_path, download=True)
    assert len(calls) == 1 and os.listdir(tmp_path) == ["MNIST"]

    def overtaken(root, download):
        write_idx(tmp_path / "KMNIST" / "raw", level=7)  # by another process
        write_idx(root / "KMNIST" / "raw")

    monkeypatch.setattr(datasets, "KMNIST", overtaken)
    assert images(make(tmp_path, KMNIST, download=True), "train")[0, 0, 5, 5] == 7


def test_a_folder_with_some_files_is_left_alone(tmp_path):
    raw = write_idx(tmp_path / "KMNIST" / "raw", ["t10k"])
    assert len(images(make(tmp_path, KMNIST, "test"), "test")) == 20
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is missing, but other files of KMNIST"):
        make(tmp_path, KMNIST, "fit", download=True)
    assert len(list(raw.iterdir())) == 2


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images-idx3", idx(bytes(60 * 784 - 5), 60, 28, 28), "truncated: 5 bytes are missing"),
        ("images-idx3", idx(bytes(60 * 784 + 1), 60, 28, 28), "1 bytes too long"),
        ("images-idx3", idx([], 60, 28, 28)[:9], "truncated in its header"),
        ("images-idx3", b"", "truncated in its header"),
        ("images-idx3", b"<html>", "must begin with 00000803, .* got 3c68746d"),
        ("images-idx3", idx(bytes(60), 60), "must begin with 00000803, .* got 00000801"),
        ("images-idx3", idx(bytes(60 * 1024), 60, 32, 32), "images must be 28x28, got 32x32"),
        ("images-idx3", idx(bytes(59 * 784), 59, 28, 28), "59 images, .*train-labels-idx1-ubyte has 60 labels"),
        ("labels-idx1", idx([10] * 60, 60), "labels must be < 10, got 10"),
        ("labels-idx1", idx(bytes(60), 60)[:-1], "truncated: 1 bytes are missing"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (write_idx(tmp_path / "MNIST" / "raw") / f"train-{name}-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=rf"train-{name}-ubyte:? .*{message}"):
        make(tmp_path)


def test_damaged_gzip(tmp_path):
    path = write_idx(tmp_path / "MNIST" / "raw", packed=True) / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[:-20], b"no gzip", whole + b"garbage", whole[:60] + b"damage" + whole[66:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is a damaged gzip file.*get it again"):
            make(tmp_path)


def test_labels_of_another_set(tmp_path, monkeypatch):
    write_idx(tmp_path / "MNIST" / "raw")
    digest = hashlib.md5(bytes(i % 10 for i in range(60))).hexdigest()
    for owner in (("KMNIST", "train"), ("MNIST", "test")):
        monkeypatch.setitem(mnist.KNOWN_LABELS, digest, owner)
        with pytest.raises(DataError, match=f"train-labels-idx1-ubyte holds the {owner[1]} labels of {owner[0]}"):
            make(tmp_path)
    monkeypatch.setitem(mnist.KNOWN_LABELS, digest, ("MNIST", "train"))
    make(tmp_path)


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    write_idx(tmp_path / "MNIST" / "raw")

    def refuse(_self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(DataError, match=r"-ubyte cannot be read \(Permission denied\)"):
        make(tmp_path)
    monkeypatch.setattr("pathlib.Path.exists", refuse)
    with pytest.raises(DataError, match=r"MNIST/raw cannot be read \(Permission denied\)"):
        make(tmp_path)
