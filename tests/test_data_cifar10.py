"""CIFAR-10: its pickles are read without being executed. No network, made-up files."""

import hashlib
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from data_files import images, isolate, make
from torchvision import datasets

from datamodules import CIFAR10, DataError, cifar10


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


def python2_pickle(pixels, labels):
    """What Python 2 wrote: byte strings, dtype('u1', 0, 1), numpy.core."""
    n = len(labels)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K"
        + bytes([n])
        + b"M\x00\x0c\x86"
        + dtype
        + b"\x89T"
        + struct.pack("<i", len(pixels))
        + pixels
        + b"tb"
    )
    values = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + values + b"eu."


def write_cifar(folder, monkeypatch, contents=None):
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [name for names in CIFAR10.files.values() for name in names]
    for i, name in enumerate(names):
        pixels = b"".join(bytes([200 + i]) * 1024 + bytes([10 * j]) * 1024 + bytes(1024) for j in range(10))
        content = (contents or {}).get(name) or python2_pickle(pixels, list(range(10)))
        (folder / name).write_bytes(content)
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names}
    monkeypatch.setattr(CIFAR10, "checksums", sums)


def test_cifar10(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    data = make(tmp_path, CIFAR10, None, val_size=None)
    assert [len(images(data, split)) for split in ("train", "val", "test")] == [45, 5, 10]
    x, c = data._sets["test"]
    assert data.image_shape == x.shape[1:] == (3, 32, 32) and c.tolist() == list(range(10))
    assert (x[:, 0] == 205).all() and (x[:, 2] == 0).all()
    assert torch.equal(x[:, 1, 5, 7].long(), 10 * c)


def test_cifar10_reads_what_todays_python_writes(tmp_path, monkeypatch):
    for protocol in (2, 4):
        batch = {"data": np.full((2, 3072), 9, np.uint8), "labels": [3, 4]}
        write_cifar(tmp_path / str(protocol), monkeypatch, {"test_batch": pickle.dumps(batch, protocol)})
        x, c = make(tmp_path / str(protocol), CIFAR10, "test")._sets["test"]
        assert (x == 9).all() and c.tolist() == [3, 4]


def test_cifar10_checksum(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"data_batch_3 must have MD5 .*get it again"):
        make(tmp_path, CIFAR10)
    make(tmp_path, CIFAR10, "test")


def test_cifar10_never_executes_a_pickle(tmp_path, monkeypatch):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    content = pickle.dumps(Malicious(), 2)
    write_cifar(tmp_path, monkeypatch, {"test_batch": content})
    with pytest.raises(DataError, match=r"test_batch was not read: it calls \w+\.mkdir"):
        make(tmp_path, CIFAR10, "test")
    assert not (tmp_path / "executed").exists()
    pickle.load(io.BytesIO(content))  # it was a real one
    assert (tmp_path / "executed").exists()


def test_cifar10_download(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"CIFAR10.*cifar-10-batches-py failed.*no network here.*data_batch_5"):
        make(tmp_path, CIFAR10, download=True)
    asked = {}

    def fake(url, root, filename, md5):
        asked.update(url=url, md5=md5)
        with monkeypatch.context() as patch:
            write_cifar(folder := type(tmp_path)(root) / "packed", patch)
            asked["sums"] = CIFAR10.checksums
        with tarfile.open(folder.with_name(filename), "w:gz") as tar:
            tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")

    monkeypatch.setattr(cifar10, "download_url", fake)
    data = CIFAR10(str(tmp_path))
    data.prepare_data()
    monkeypatch.setattr(CIFAR10, "checksums", asked["sums"])
    data.setup("test")
    assert asked["url"] == datasets.CIFAR10.url and asked["md5"] == datasets.CIFAR10.tgz_md5
