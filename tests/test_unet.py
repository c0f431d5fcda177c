"""The U-Net: its sizes, its padding, its attention, and the weights of diffusers."""

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.testing import assert_close

from lit_generative.nn.unet import Attention, UNet, renamed


def awake(net):
    """Weights that are not zero anywhere."""
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return net.eval()


def theirs(attention, **kwargs):
    down = ["AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(3)]
    up = ["AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(3))]
    return UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16, 24),
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=4,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        **{"attention_head_dim": None, **kwargs},
    )


@pytest.mark.parametrize(
    ("attention", "kwargs", "ours"),
    [
        ((1,), {"layers_per_block": 2}, {}),
        ((0, 2), {"layers_per_block": 1, "attention_head_dim": 4}, {"blocks": 1, "head_channels": 4}),
        ((), {"layers_per_block": 2, "num_class_embeds": 5}, {"classes": 5}),
    ],
)
def test_weights_of_diffusers_give_what_they_give_there(attention, kwargs, ours):
    reference = awake(theirs(attention, **kwargs))
    net = UNet((3, 16, 16), (8, 16, 24), attention_at=attention, groups=4, **ours).eval()
    net.load_state_dict(reference.state_dict())
    x, t = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 500, 999])
    labels = torch.arange(4) if "classes" in ours else None
    with torch.no_grad():
        assert_close(net(x, t, labels), reference(x, t, class_labels=labels).sample, atol=1e-5, rtol=1e-5)


def test_names_of_early_attention_layers_are_known():
    today = theirs((1,)).state_dict()
    early = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in today.items():
        for new, before in early.items():
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = value
    assert old.keys() != today.keys() and renamed(old).keys() == today.keys() == renamed(today).keys()


def test_the_papers_network_has_its_size():
    with torch.device("meta"):
        net = UNet((3, 32, 32), (128, 256, 256, 256), 2, (1,), groups=32, dropout=0.1)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 35.7
    assert sum(isinstance(m, Attention) for m in net.modules()) == 2 + 3 + 1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 17, 30), (1, 1, 5)])
@pytest.mark.parametrize("patch", [1, 2])
def test_any_size_goes_in_and_comes_out(shape, patch):
    net = awake(UNet(shape, (8, 8, 16), 1, (2,), groups=4, patch=patch))
    assert net(torch.randn(2, *shape), torch.tensor([0, 7])).shape == (2, *shape)


def test_what_a_size_divides_is_not_padded_and_padding_is_in_the_middle():
    assert UNet((1, 28, 28), (8, 8), groups=4, attention_at=(), patch=2).padding == [0, 0, 0, 0]
    assert UNet((1, 28, 28), (8, 8, 8, 8), groups=4, attention_at=()).padding == [2, 2, 2, 2]
    assert UNet((1, 3, 4), (8, 8), groups=4, attention_at=()).padding == [0, 0, 0, 1]


def test_nothing_comes_out_at_first_and_time_class_and_every_pixel_matter_then():
    net = UNet((1, 8, 8), (8, 8), 1, (1,), groups=4, classes=3)
    x, t, c = torch.randn(2, 1, 8, 8), torch.tensor([5, 5]), torch.tensor([0, 1])
    assert not net(x, t, c).any()
    awake(net)
    out = net(x, t, c)
    assert not torch.equal(out, net(x, t + 1, c)) and not torch.equal(out, net(x, t, c + 1))
    far = x.clone()
    far[:, :, -1, -1] += 1
    assert (net(far, t, c) - out)[:, 0, 0, 0].abs().min() > 0  # attention reaches everywhere


def test_dropout_is_where_the_paper_has_it():
    net = UNet((1, 8, 8), (8, 8), 1, (1,), groups=4, dropout=0.3)
    found = [m for m in net.modules() if isinstance(m, nn.Dropout)]
    assert len(found) == 2 + 2 + 4 and all(m.p == 0.3 for m in found)  # one in every residual block


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": (8, 10)}, "multiples of groups"),
        ({"patch": 0}, "patch >= 1"),
        ({"channels": ()}, "multiples of groups"),
        ({"channels": (5, 5), "groups": 5}, "must be even"),
        ({"attention_at": (2,)}, "names level 2"),
        ({"head_channels": 3}, "does not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        UNet((1, 8, 8), **{"channels": (8, 8), "groups": 4, "attention_at": (1,)} | wrong)
