"""Made-up data sets in the real formats, for the tests of the data modules."""

import gzip
import struct
import urllib.error

from datamodules import MNIST, mnist

COUNTS = {"train": 60, "t10k": 20}


def isolate(monkeypatch, tmp_path):
    """No network, no system files, no environment."""

    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.delenv("LIT_GENERATIVE_DATA", raising=False)


def idx(values, *sizes):
    return struct.pack(f">4B{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + bytes(values)


def write_idx(folder, prefixes=("train", "t10k"), packed=False, level=0):
    """Files of images that are `level` but for their first pixel, which is their number; labels 0..9 in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in prefixes:
        n = COUNTS[prefix]
        images = b"".join(bytes([i]) + bytes([level]) * 783 for i in range(n))
        for name, content in (
            (f"{prefix}-images-idx3-ubyte", idx(images, n, 28, 28)),
            (f"{prefix}-labels-idx1-ubyte", idx([i % 10 for i in range(n)], n)),
        ):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


def make(folder, cls=MNIST, stage="fit", **options):
    data = cls(str(folder), **({"batch_size": 10, "download": False} | options))
    data.prepare_data()
    data.setup(stage)
    return data


def images(data, split):
    return data._sets[split][0]
