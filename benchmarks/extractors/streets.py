"""A small network that labels drawn street scenes, to score translations of them, and its features for the distance.

    python benchmarks/extractors/streets.py WEIGHTS.safetensors [--steps 1200] [--size 128]

It is trained on scenes of its own, never on those of a folder. In a test it is given by class path:
``benchmarks.extractors.streets.Segmenter`` for ``TranslationScores``, ``benchmarks.extractors.streets.Features`` for
``TranslationFID``, both with ``weights: WEIGHTS.safetensors``.
"""

import argparse
import time
from itertools import pairwise

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.scenes.streets import street
from datamodules.cityscapes import CLASSES, VOID, train_ids


class Segmenter(nn.Module):
    """Images ``(B, 3, H, W)`` in [0, 1], sides multiples of 8, to logits ``(B, 19, H, W)``."""

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        self.downs = nn.ModuleList(self.block(i, o, 2) for i, o in pairwise(widths))
        self.middle = self.block(64, 64, 1)
        self.ups = nn.ModuleList(self.block(i, o, 1) for i, o in ((64 + 48, 48), (48 + 24, 32), (32 + 3, 32)))
        self.last = nn.Conv2d(32, len(CLASSES), 1)
        if weights is not None:
            self.load_state_dict(load_file(weights))

    @staticmethod
    def block(i: int, o: int, stride: int) -> nn.Sequential:
        layers = [nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(o, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU())

    def encode(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for down in self.downs:
            maps.append(down(maps[-1]))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        *skips, h = self.encode(x)
        h = self.middle(h)
        for up in self.ups:
            h = up(torch.cat([nn.functional.interpolate(h, scale_factor=2.0), skips.pop()], 1))
        return self.last(h)


class Features(nn.Module):
    """Images uint8 ``(B, 3, H, W)`` to 136 features: the means of all maps at a half, a quarter and an eighth."""

    name = "streets"
    preparation = "means of a street segmenter's maps"

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.net = Segmenter(weights).eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.net.encode(images.float() / 255)
        return torch.cat([m.mean((2, 3)) for m in maps[1:]], 1)


def scenes(count: int, size: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    pairs = [street(size, draw) for _ in range(count)]
    photos = torch.from_numpy(np.stack([photo for photo, _ in pairs])).permute(0, 3, 1, 2) / 255
    return photos, torch.from_numpy(np.stack([train_ids()[ids] for _, ids in pairs])).long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="file to write")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--scenes", type=int, default=400)
    args = parser.parse_args()
    torch.manual_seed(0)
    draw = np.random.default_rng(12345)
    photos, labels = scenes(args.scenes, args.size, draw)
    test_photos, test_labels = scenes(40, args.size, draw)
    net, start = Segmenter(), time.perf_counter()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, args.steps)
    for _ in range(args.steps):
        i = torch.randint(0, len(photos), (8,))
        loss = cross_entropy(net(photos[i]), labels[i], ignore_index=VOID)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        right = (net(test_photos).argmax(1) == test_labels)[test_labels != VOID].double().mean()
    print(f"{100 * right:.2f} % of the pixels of 40 new scenes, {time.perf_counter() - start:.0f} s: {args.weights}")
    save_file(net.state_dict(), args.weights)


if __name__ == "__main__":
    main()
