"""The U-Net of DDPM (Ho et al., 2020, App. B), with the parameter names of diffusers' ``UNet2DModel``.

Level i has ``channels[i]`` channels at 1/2^i of the resolution; every residual block is conditioned on the time step.
State dicts of diffusers' models of this architecture (``google/ddpm-cifar10-32``) load as they are, early ones after
`renamed`.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_generative.errors import UserError
from lit_generative.nn.layout import ImageNetwork, arranged
from lit_generative.nn.mlp import zero_init

EPS = 1e-6  # of the group norms


class Residual(nn.Module):
    """Two 3x3 convolutions with the embedding ``(B, E)`` added between them, and a shortcut."""

    def __init__(self, i: int, o: int, embedding: int, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, i, EPS)
        self.conv1 = nn.Conv2d(i, o, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, o)
        self.norm2 = nn.GroupNorm(groups, o, EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(o, o, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(embedding)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    """x + self-attention over all pixels."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, channels, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = (f(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out(h).transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """Halve the resolution by a strided convolution, padded only on the right and bottom as in the authors' code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution by nearest neighbours, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    """Residual blocks of one resolution, with or without attention, and the change of resolution after them."""

    def __init__(self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module]) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()

    @property
    def depth(self) -> int:
        return len(self.resnets)

    def block(self, i: int, h: Tensor, embedding: Tensor) -> Tensor:
        h = self.resnets[i](h, embedding)
        return self.attentions[i](h) if self.attentions else h


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time step at ``width`` / 2 frequencies, then two linear layers."""

    frequencies: Tensor

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2 - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.linear_1, self.linear_2 = nn.Linear(width, features), nn.Linear(features, features)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        h = torch.cat([angles.sin(), angles.cos()], 1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(h)))


class UNet(ImageNetwork):
    """Images ``(B, C, H, W)``, time steps ``(B,)`` >= 0 and optional classes ``(B,)`` to ``(B, C, H, W)``, initially 0.

    Args:
        image_shape: (C, H, W). Images are padded with 0 to sides that every level can halve; the output is cropped.
        channels: Channels of every level, the finest first.
        blocks: Residual blocks per level on the way down; there is one more per level on the way up.
        attention_at: Levels with attention after every block, 0 the finest; the middle always has it.
        head_channels: Channels of an attention head; None: one head.
        dropout: Dropout probability in every residual block.
        groups: Groups of the group norms.
        patch: Side of the squares of pixels that are first moved to channels (space to depth), to save time.
        classes: Number of class labels; 0: none.

    Raises:
        ValueError: ``channels`` are not divisible by ``groups`` or ``head_channels``, or a level does not exist.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: Sequence[int] = (128, 256, 256, 256),
        blocks: int = 2,
        attention_at: Sequence[int] = (1,),
        head_channels: int | None = None,
        dropout: float = 0.0,
        groups: int = 32,
        patch: int = 1,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if not channels or min(*channels, blocks, groups, patch) < 1 or any(c % groups for c in channels):
            raise UserError(
                f"channels must be multiples of groups, and blocks, groups and patch >= 1; got "
                f"channels {tuple(channels)}, blocks {blocks}, groups {groups}, patch {patch}"
            )
        if channels[0] % 2 or channels[0] < 4:
            raise UserError(f"the first of channels must be even and >= 4, got {channels[0]}")
        if not 0 <= dropout <= 1:
            raise UserError(f"dropout must be in [0, 1], got {dropout}")
        if unknown := [i for i in attention_at if not 0 <= i < len(channels)]:
            raise UserError(f"attention_at names level {unknown[0]}, but levels are 0 to {len(channels) - 1}")
        attended = {channels[i] for i in (*attention_at, -1)}
        if head_channels is not None and (head_channels < 1 or any(c % head_channels for c in attended)):
            raise UserError(f"head_channels {head_channels} does not divide the channels {sorted(attended)}")
        c, *self.size = image_shape
        factor = patch * 2 ** (len(channels) - 1)
        self.padding = [p for side in reversed(self.size) for p in ((-side % factor) // 2, (-side % factor + 1) // 2)]
        features = 4 * channels[0]

        def residual(i: int, o: int) -> Residual:
            return Residual(i, o, features, dropout, groups)

        def attention(channels: int) -> Attention:
            return Attention(channels, channels // (head_channels or channels), groups)

        def level(i: int, ins: Sequence[int]) -> Level:
            attentions = [attention(channels[i]) for _ in ins] if i in attention_at else []
            return Level([residual(before, channels[i]) for before in ins], attentions)

        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.conv_in = nn.Conv2d(c * patch**2, channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], features)
        self.class_embedding = nn.Embedding(classes, features) if classes else None
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips = [channels[0]]
        for i, (before, now) in enumerate(pairwise([channels[0], *channels])):
            down = level(i, [before] + [now] * (blocks - 1))
            skips += [now] * blocks
            if i < len(channels) - 1:
                down.downsamplers.append(Downsample(now))
                skips.append(now)
            self.down_blocks.append(down)
        last = channels[-1]
        self.mid_block = Level([residual(last, last), residual(last, last)], [attention(last)])
        for i, (before, now) in reversed(list(enumerate(pairwise([*channels, last])))):
            # `now` channels come from the level below, `before` are this level's
            ins = [skips.pop() + (now if j == 0 else before) for j in range(blocks + 1)]
            up = level(i, ins)
            if i > 0:
                up.upsamplers.append(Upsample(before))
            self.up_blocks.append(up)
        self.conv_norm_out = nn.GroupNorm(groups, channels[0], EPS)
        self.conv_out = nn.Conv2d(channels[0], c * patch**2, 3, padding=1)
        self._initialise()
        self.arrange()

    def _initialise(self) -> None:
        """Xavier uniform; the last layer of every residual branch and of the network is 0 (the authors' code)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                zero_init(module)
                nn.init.xavier_uniform_(module.weight)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and name.endswith(("conv2", "to_out.0", "conv_out")):
                zero_init(module)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.fold(F.pad(x, self.padding))
        embedding = self.time_embedding(t)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(c)
        embedding = F.silu(embedding)
        # images and weights of one channel do not determine the memory format
        h = arranged(self.conv_in(h))
        skips = [h]
        level: Any
        for level in self.down_blocks:
            for i in range(level.depth):
                h = level.block(i, h, embedding)
                skips.append(h)
            for down in level.downsamplers:
                h = down(h)
                skips.append(h)
        h = self.mid_block.resnets[1](self.mid_block.block(0, h, embedding), embedding)
        for level in self.up_blocks:
            for i in range(level.depth):
                h = level.block(i, torch.cat([h, skips.pop()], 1), embedding)
            for up in level.upsamplers:
                h = up(h)
        h = self.unfold(self.conv_out(F.silu(self.conv_norm_out(h))))
        left, _, top, _ = self.padding
        height, width = self.size
        return h[..., top : top + height, left : left + width]


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with early diffusers' names of attention layers (``query``, ..., ``proj_attn``) in today's names."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return {
        re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)", lambda m: new[m[0]], name): value
        for name, value in state.items()
    }
