import numpy as np
import torch
from PIL import Image
from torch.testing import assert_close

from lit_generative.images import from_symmetric, from_uint8, grid, save_png, to_symmetric, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_all_levels_survive_every_round_trip():
    x = from_uint8(LEVELS)
    assert x.dtype == torch.float32 and x.min() == 0 and x.max() == 1
    assert torch.equal(to_uint8(x), LEVELS)
    assert torch.equal(to_uint8(from_symmetric(to_symmetric(x))), LEVELS)  # truncation would lose 63 of them


def test_levels_are_the_nearest_floats_to_k_over_255():
    assert torch.equal(from_uint8(LEVELS), (LEVELS.double() / 255).float())


def test_to_uint8_clamps_instead_of_wrapping():
    assert to_uint8(torch.tensor([-3.0, 1.01, 9.0])).tolist() == [0, 255, 255]


def test_symmetric_range():
    assert_close(to_symmetric(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))


def test_grid_is_a_colour_picture_in_range():
    picture = grid(torch.rand(10, 1, 28, 28) * 2 - 0.5, columns=5)
    assert picture.shape == (3, 2 * 30 + 2, 5 * 30 + 2)
    assert picture.min() >= 0 and picture.max() <= 1


def test_png_holds_the_levels(tmp_path):
    x = from_uint8(LEVELS.view(1, 16, 16).expand(3, -1, -1))
    save_png(x, tmp_path / "deep" / "a.png")
    with Image.open(tmp_path / "deep" / "a.png") as picture:
        assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), to_uint8(x))
