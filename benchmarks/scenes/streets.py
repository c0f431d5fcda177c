"""Street scenes drawn by rule, in the layouts of Cityscapes, for those who have not got Cityscapes.

    python benchmarks/scenes/streets.py FOLDER [--layout pairs] [--train 180] [--val 20] [--size 256] [--seed 0]

``pairs``: ``train`` and ``val`` with JPEGs of photo and colours side by side; ``archives``: ``leftImg8bit`` and
``gtFine``; ``sides``: ``trainA`` and ``valA`` with photos, ``trainB`` and ``valB`` with colours.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import Cityscapes

NAMES = ("sky", "road", "sidewalk", "building", "vegetation", "car", "pole", "polegroup")
LABELS = {c.name: c for c in Cityscapes.classes if c.name in NAMES}


def street(size: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A scene: the photo, uint8 ``(size, size, 3)``, and the label id of every pixel, uint8 ``(size, size)``.

    As in Cityscapes, a licence plate (id -1) is labelled as what it hangs on.
    """
    y, x = np.mgrid[0:size, 0:size] / size
    photo, ids = np.zeros((size, size, 3)), np.zeros((size, size), np.uint8)
    horizon, vanishing = draw.uniform(0.4, 0.5), draw.uniform(0.35, 0.65)
    daylight = draw.uniform(0.7, 1.1)

    def paint(where: np.ndarray, name: str, colour: np.ndarray | list[float]) -> None:
        ids[where] = LABELS[name].id
        photo[where] = np.broadcast_to(colour, photo.shape)[where]

    blue = np.array([120.0, 160.0, 215.0]) + (y / horizon)[..., None] * 60
    paint(np.ones_like(y, bool), "sky", blue + 12 * smooth(size, 6, draw)[..., None])
    left = 0.0
    while left < 1:  # houses side by side, with windows in rows
        right, top = left + draw.uniform(0.1, 0.3), draw.uniform(0.05, 0.8) * horizon
        wall, pitch = draw.uniform(70, 190, 3), draw.uniform(0.035, 0.06)
        window = ((x - left) % pitch > 0.4 * pitch) & ((y - top) % (1.4 * pitch) > 0.6 * pitch)
        colour = np.where(window[..., None], wall * draw.uniform(0.3, 0.6), wall)
        if draw.random() < 0.8:
            paint((x >= left) & (x < right) & (y >= top) & (y < horizon + 0.02), "building", colour)
        left = right
    for _ in range(draw.integers(1, 5)):  # crowns of trees
        centre, height, radius = draw.uniform(0, 1), horizon - draw.uniform(0, 0.12), draw.uniform(0.04, 0.11)
        leaves = np.array([60.0, 105.0, 45.0]) + 45 * smooth(size, 40, draw)[..., None]
        paint(
            (x - centre) ** 2 + (y - height) ** 2 < radius**2 * (1 + 0.4 * smooth(size, 20, draw)), "vegetation", leaves
        )
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
    across = (x - vanishing) / np.maximum(depth, 1e-6)
    below = y >= horizon
    paint(below, "sidewalk", np.array([150.0, 140.0, 145.0]) + 14 * smooth(size, 60, draw)[..., None])
    grey = np.array([85.0, 85.0, 90.0]) + 10 * smooth(size, 90, draw)[..., None]
    marked = (np.abs(across) < 0.03) & ((1 / np.maximum(depth, 0.05)) % 1.2 < 0.6)
    paint(below & (np.abs(across) < 0.8), "road", np.where(marked[..., None], 225.0, grey))
    for _ in range(draw.integers(0, 3)):  # lamps
        centre = draw.uniform(0.02, 0.98)
        paint((np.abs(x - centre) < 0.006) & (y > horizon - 0.3) & (y < horizon + 0.1), "pole", [95.0, 95.0, 98.0])
    if draw.random() < 0.7:  # poles that stand together, whose group has the colour of one
        centre = draw.uniform(0.05, 0.95)
        beside = (np.abs(x - centre) < 0.04) & ((x - centre) % 0.02 < 0.01)
        paint(beside & (y > horizon - 0.2) & (y < horizon + 0.08), "polegroup", [105.0, 105.0, 108.0])
    for at in sorted(draw.uniform(0.15, 0.75, draw.integers(0, 4))):  # cars, the far ones first
        bottom, width = horizon + at * (1 - horizon), 0.08 + 0.32 * at
        centre = vanishing + draw.choice([-0.4, 0.4]) * at + draw.normal(0, 0.02)
        u, v = (x - centre) / width, (bottom - y) / width  # v upwards from the ground
        body = (np.abs(u) < 0.5) & (v > 0.04) & (v < 0.34)
        cabin = (np.abs(u) < 0.34 - 0.25 * (v - 0.34)) & (v >= 0.34) & (v < 0.58)
        wheels = (np.abs(np.abs(u) - 0.3) < 0.09) & (v > -0.03) & (v < 0.13)
        lacquer = draw.uniform(30, 230, 3)
        paint(body | cabin, "car", lacquer)
        paint(cabin & (np.abs(u) < 0.3 - 0.25 * (v - 0.34)) & (v > 0.37) & (v < 0.54), "car", [45.0, 55.0, 65.0])
        paint(wheels, "car", [22.0, 22.0, 24.0])
        paint((np.abs(u) < 0.1) & (v > 0.12) & (v < 0.18), "car", [225.0, 225.0, 215.0])  # its licence plate
    photo = photo * daylight + draw.normal(0, 3, photo.shape)
    return np.clip(photo, 0, 255).round().astype(np.uint8), ids


def smooth(size: int, cells: int, draw: np.random.Generator) -> np.ndarray:
    """Noise of about ``cells`` waves across, in [-1, 1], ``(size, size)``."""
    coarse = Image.fromarray(draw.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).clip(-1, 1)


def coloured(ids: np.ndarray) -> np.ndarray:
    """Labels in the colours of Cityscapes, uint8 ``(H, W, 3)``."""
    table = np.zeros((256, 3), np.uint8)
    for label in LABELS.values():
        table[label.id] = label.color
    return table[ids]


def write(folder: Path, layout: str, numbers: dict[str, int], size: int, seed: int) -> None:
    """Draw ``numbers[split]`` scenes of every split into ``folder``, which is made.

    Raises:
        FileExistsError: There is such a folder already.
    """
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for split, count in numbers.items():
        for i in range(count):
            photo, ids = street(size, draw)
            if layout == "pairs":
                (folder / split).mkdir(exist_ok=True)
                both = Image.fromarray(np.concatenate([photo, coloured(ids)], 1))
                both.save(folder / split / f"{i + 1}.jpg", quality=95)
                continue
            if layout == "sides":
                for side, levels in (("A", photo), ("B", coloured(ids))):
                    (folder / f"{split}{side}").mkdir(exist_ok=True)
                    Image.fromarray(levels).save(folder / f"{split}{side}" / f"{i + 1}.png")
                continue
            stem = f"drawn_{i:06d}_{seed:06d}"
            images, labels = folder / "leftImg8bit" / split / "drawn", folder / "gtFine" / split / "drawn"
            for place in (images, labels):
                place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(images / f"{stem}_leftImg8bit.png")
            Image.fromarray(ids).save(labels / f"{stem}_gtFine_labelIds.png")
            opaque = np.full((*ids.shape, 1), 255, np.uint8)
            rgba = np.concatenate([coloured(ids), opaque], 2)
            Image.fromarray(rgba).save(labels / f"{stem}_gtFine_color.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=("pairs", "archives", "sides"), default="pairs")
    parser.add_argument("--train", type=int, default=180)
    parser.add_argument("--val", type=int, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder} exists already: name another folder, or remove it")
    write(args.folder, args.layout, {"train": args.train, "val": args.val}, args.size, args.seed)
    print(f"{args.train} + {args.val} street scenes: {args.folder}")


if __name__ == "__main__":
    main()
