"""R3GAN: its loss by hand, its penalties in closed form; augmentations of every GAN."""

import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from lit_generative.errors import UserError
from lit_generative.models import DCGAN, WGAN, WGANGP
from lit_generative.models.r3gan import R3GAN, logits_and_penalty
from lit_generative.nn.augmentation import augmented, color, cutout, translation
from lit_generative.nn.r3gan import Bottleneck


def images(n=6, c=1, side=28):
    return torch.randint(0, 256, (n, c, side, side)) / 255


class Linear(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, x):
        return (x * self.w).flatten(1).sum(1)


def test_the_penalty_of_a_linear_critic_is_the_square_of_its_slope():
    w = torch.randn(1, 4, 4, dtype=torch.float64)
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    logits, penalty = logits_and_penalty(Linear(w), x)
    assert_close(penalty, w.square().sum()), assert_close(logits, Linear(w)(x))

    class Square(nn.Module):
        def forward(self, x):
            return x.square().flatten(1).sum(1) / 2

    assert_close(logits_and_penalty(Square(), x)[1], x.square().flatten(1).sum(1).mean())


def test_losses_are_those_of_pairs():
    torch.manual_seed(0)
    model = R3GAN(width=4, latent=4, group=4, penalty=0.5)
    w = torch.randn(1, 28, 28) / 28
    model.discriminator = Linear(w)
    x, fake = images(), torch.rand(6, 1, 28, 28) * 2 - 1
    margins = ((2 * x - 1 - fake) * w).flatten(1).sum(1)
    found = model.discriminator_loss((x, x), fake)
    assert next(iter(found)) == "loss_discriminator"
    expected = -logsigmoid(margins).mean() + 0.5 * w.square().sum()  # gamma / 2 of R1 and of R2
    assert_close(found["loss_discriminator"], expected)
    assert_close(found["pairs_told_apart"], (margins > 0).float().mean())
    assert_close(model.generator_loss((x, x), fake)["loss_generator"], -logsigmoid(-margins).mean())


def test_networks_start_as_resampling_and_have_no_norms():
    torch.manual_seed(0)
    model = R3GAN(width=8, latent=4, group=4)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm | nn.GroupNorm) for m in model.modules())
    blocks = [m for m in model.modules() if isinstance(m, Bottleneck)]
    assert len(blocks) == 6
    for block in blocks:
        x = torch.randn(2, block.expand.in_channels, 7, 7)
        assert torch.equal(block(x), x)


def test_an_images_logit_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    model = R3GAN(width=8, latent=4, group=4)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    x = images()
    assert_close(torch.cat([model.discriminator(x[i : i + 1]) for i in range(6)]), model.discriminator(x))
    assert model.discriminator(x).std() > 1e-3
    assert model.sample(3).shape == (3, 1, 28, 28)


@pytest.mark.parametrize(
    "options",
    [
        {"image_shape": (3, 32, 32)},
        {"image_shape": (1, 28, 28), "blocks": 2},
        {"image_shape": (3, 64, 64), "latent": 8},
    ],
)
def test_any_size_of_two_to_the_n(options):
    model = R3GAN(width=4, group=4, **options)
    x = model.sample(2)
    assert x.shape[1:] == options["image_shape"] and model.discriminator(x).shape == (2,)


def test_translations_move_and_fill_with_black():
    torch.manual_seed(0)
    x = torch.rand(200, 2, 8, 12) + 0.5
    moved = translation(x)  # by up to one row and up to two columns (rounded)
    seen = set()
    for a, b in zip(x, moved, strict=True):
        for dy in (-1, 0, 1):
            for dx in (-2, -1, 0, 1, 2):
                expected = torch.full_like(a, -1.0)
                rows, columns = slice(max(0, -dy), 8 - max(0, dy)), slice(max(0, -dx), 12 - max(0, dx))
                expected[:, max(0, dy) : 8 + min(0, dy), max(0, dx) : 12 + min(0, dx)] = a[:, rows, columns]
                if torch.equal(expected, b):
                    seen.add((dy, dx))
                    break
            else:
                continue
            break
        else:
            raise AssertionError("no translation")
    assert len(seen) == 15


def test_cutouts_are_rectangles_of_at_most_half_the_sides():
    torch.manual_seed(0)
    x = torch.ones(300, 1, 8, 8)
    holes = (cutout(x) == 0)[:, 0]
    assert holes.flatten(1).sum(1).max() == 16 and len({tuple(h.flatten().tolist()) for h in holes}) > 30
    for hole in holes:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns) and max(rows.sum(), columns.sum()) <= 4


def test_colours_keep_grey_images_grey_and_change_their_brightness():
    torch.manual_seed(0)
    x = torch.rand(50, 1, 8, 8).expand(-1, 3, -1, -1)
    y = color(x)
    assert_close(y[:, :1].expand(-1, 3, -1, -1), y)
    change = y.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert change.abs().max() < 0.5 + 1e-6 and change.std() > 0.2


@pytest.mark.parametrize("name", ["color", "translation", "cutout"])
def test_gradients_go_through(name):
    x = torch.rand(4, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(augmented(x, [name]).sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("cls", [DCGAN, WGAN, WGANGP, R3GAN])
def test_every_gan_augments_real_and_fake_images_in_training_only(cls, monkeypatch):
    torch.manual_seed(0)
    model, x = cls(width=4, latent=4, augment=["cutout"]), images(8)
    seen = []

    def penalty(critic, *points):
        seen.extend(points)
        return torch.zeros(())

    def both(critic, x):
        return critic(x), torch.zeros(())

    for name, stub in {"gradient_penalty": penalty, "logits_and_penalty": both}.items():
        if hasattr(module := sys.modules[cls.__module__], name):
            monkeypatch.setattr(module, name, stub)
    monkeypatch.setattr(model.discriminator, "forward", lambda x: seen.append(x) or (x * 0.1).flatten(1).sum(1))
    ones = torch.ones_like(x)
    model.discriminator_loss((ones, ones), ones)
    model.generator_loss((ones, ones), ones)
    assert len(seen) >= 3 and not any((y == 1).all() for y in seen)
    seen.clear()
    model.ood_scores(ones)
    assert (seen[0] == 1).all()
    with pytest.raises(UserError, match="no augmentation blur"):
        cls(width=4, augment=["blur"])
