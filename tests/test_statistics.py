"""Statistics on disk are found by all that they depend on, and only whole."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_generative.metrics.frechet import Gaussian
from lit_generative.metrics.reference_statistics import (
    cache_folder,
    content_hash,
    path_of,
    read_reference,
    read_statistics,
    save_statistics,
)

KEY = {"data": "MNIST", "content": "ab", "split": "train", "count": 9, "size": [1, 28, 28], "weights": "cd"}


@pytest.fixture
def gaussian():
    return Gaussian.of(torch.randn(50, 6))


def test_what_is_saved_is_read(gaussian, tmp_path):
    path = path_of(KEY, tmp_path / "new")
    save_statistics(path, gaussian, KEY)
    for ours, again in zip(gaussian, read_statistics(path, KEY), strict=True):
        assert_close(torch.as_tensor(again), torch.as_tensor(ours), rtol=0, atol=0)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_every_ingredient_leads_to_another_file(tmp_path):
    paths = {path_of({**KEY, name: "other"}, tmp_path) for name in KEY} | {path_of(KEY, tmp_path)}
    assert len(paths) == len(KEY) + 1


def test_the_order_of_the_ingredients_does_not_matter(tmp_path):
    assert path_of(dict(reversed(KEY.items())), tmp_path) == path_of(KEY, tmp_path)


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lit-generative"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "lit-generative"


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('this was executed')",)


@pytest.mark.parametrize(
    ("mu", "fault"),
    [(np.array([Bomb()]), "is damaged, or not an .npz with mu"), (np.array([np.nan]), "must be a finite mean")],
    ids=["pickle", "NaN"],
)
def test_what_is_no_number_is_neither_executed_nor_used(mu, fault, tmp_path):
    np.savez(tmp_path / "a.npz", mu=mu, sigma=np.eye(1))
    with pytest.raises(ValueError, match=fault):
        read_reference(tmp_path / "a.npz", "own", "", (1, 28, 28))
    with pytest.raises(ValueError, match="there is no file"):
        read_reference(tmp_path / "none.npz", "own", "", (1, 28, 28))


def test_statistics_of_something_else_are_never_used(gaussian, tmp_path):
    save_statistics(tmp_path / "a.npz", gaussian, {**KEY, "count": 8})
    with pytest.raises(ValueError, match="has statistics of another key"):
        read_statistics(tmp_path / "a.npz", KEY)


def test_a_torn_file_is_never_used(gaussian, tmp_path):
    path = tmp_path / "a.npz"
    save_statistics(path, gaussian, KEY)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            read_statistics(path, KEY)
    flipped = bytearray(whole)
    flipped[200] ^= 1  # one bit of mu
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="damaged"):
        read_statistics(path, KEY)


def test_a_write_that_fails_leaves_what_was_there(gaussian, tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_statistics(path, gaussian, KEY)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_statistics(path, gaussian, KEY)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_files_of_pytorch_fid_are_read(tmp_path):
    np.savez(tmp_path / "theirs.npz", mu=np.arange(3.0), sigma=np.eye(3))
    p = read_reference(tmp_path / "theirs.npz", "own", "", (1, 28, 28))
    assert p.n == 0 and p.mean.tolist() == [0, 1, 2] and torch.equal(p.covariance, torch.eye(3).double())
    np.savez(tmp_path / "wrong.npz", mu=np.arange(3.0), sigma=np.eye(2))
    with pytest.raises(ValueError, match="must be a finite mean"):
        read_reference(tmp_path / "wrong.npz", "own", "", (1, 28, 28))
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}]), sigma=np.eye(1))
    with pytest.raises(ValueError, match=r"is damaged, or not an \.npz with mu"):
        read_reference(tmp_path / "pickled.npz", "own", "", (1, 28, 28))


def test_a_reference_must_be_of_the_same_resize(gaussian, tmp_path):
    """Features of images resized in two ways are features of two sets of images."""
    theirs, ours = tmp_path / "theirs.npz", tmp_path / "ours.npz"
    np.savez(theirs, mu=np.arange(3.0), sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"does not say how .* run a test with FID .* or set trust_reference"):
        read_reference(theirs, "inception", "bilinear to 299x299", (3, 32, 32))
    assert read_reference(theirs, "inception", "bilinear to 299x299", (3, 32, 32), trust=True).n == 0
    save_statistics(ours, gaussian, {**KEY, "extractor": "net", "resize": ["pad", "bilinear"], "size": [1, 28, 28]})
    assert read_reference(ours, "net", "bilinear", (1, 28, 28)).n == 50
    for trust in (False, True):  # what is known to be another is not taken on trust
        for extractor, preparation, size, fault in (
            ("other", "bilinear", (1, 28, 28), "features of net, not of other"),
            ("net", "bicubic", (1, 28, 28), r"'bilinear'\), not \(\(1, 28, 28\), 'bicubic'\)"),
            ("net", "bilinear", (1, 32, 32), r"images \(\(1, 28, 28\), 'bilinear'\), not \(\(1, 32, 32\)"),
        ):
            with pytest.raises(ValueError, match=fault):
                read_reference(ours, extractor, preparation, size, trust)


def test_content_hash_follows_every_pixel_and_the_shape():
    x = torch.zeros(20_001, 1, 2, 2, dtype=torch.uint8)
    y = x.clone()
    y[-1, 0, 1, 1] = 1
    assert content_hash(x) == content_hash(x.clone())
    assert len({content_hash(x), content_hash(y), content_hash(x.view(-1, 1, 4, 1)), content_hash(x[:-1])}) == 4
