"""Subcommands that need neither data nor a Trainer."""

import argparse
import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch

from lit_generative.checkpoints.load import load_model
from lit_generative.checkpoints.pretrained import export_programs
from lit_generative.errors import UserError, UserTypeError
from lit_generative.images import grid, save_png, to_uint8
from lit_generative.protocols import Samples
from lit_generative.sampling import draw
from lit_generative.utils.files import atomic_write, require_new
from lit_generative.utils.rng import forked_rng
from lit_generative.utils.tasks import tracked


def sample(
    ckpt_path: str,
    n: int = 64,
    output: str = "samples.png",
    seed: int = 0,
    batch_size: int = 256,
    device: str = "cpu",
    label: int | Literal["each"] | None = None,
    options: dict[str, int | float | str] | None = None,
) -> None:
    """Draw images from the model of a checkpoint.

    Args:
        ckpt_path: Checkpoint written by a training run.
        n: Number of images.
        output: ``x.png`` for one grid, ``x.npz`` for a uint8 array (n, H, W, C), otherwise a folder of PNG files.
        seed: Seed of the noise.
        batch_size: Images drawn at a time.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        label: Class of the images, for a class-conditional model, or ``each``: as many of every class, a row of a grid
            for each; default: samples without a label.
        options: Other arguments of the model's ``sample``, such as ``--options.temperature 0.7`` for a flow.
    """
    target = Path(output)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists already: choose another --output, or remove it")
    kind = target.suffix.lower()
    if kind not in (".png", ".npz", ""):
        raise UserError(f"--output must be x.png, x.npz or a folder without a suffix, got {target}")
    if min(n, batch_size) < 1:
        raise UserError(f"--n and --batch_size must be >= 1, got {n} and {batch_size}")
    if seed.bit_length() > 63:
        raise UserError(f"--seed must have at most 63 bits, got {seed}")
    model: Any = load_model(ckpt_path)
    try:
        model.to(device)
    except RuntimeError as error:
        raise UserError(f"--device {device} cannot be used: {error}") from error
    if not isinstance(model, Samples):
        raise UserTypeError(f"a {type(model).__name__} cannot sample")
    classes = getattr(model, "classes", 0)
    if label is not None and (not classes if label == "each" else not 0 <= label < classes):
        raise UserError(f"--label {label}: {type(model).__name__} has {classes or 'no'} classes")
    if label == "each" and n % classes:
        raise UserError(f"--label each: --n must be a multiple of {classes}, the number of classes, got {n}")
    chosen: Any = options or {}
    known = list(inspect.signature(model.sample).parameters)[2:]  # after n and c
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"{type(model).__name__} has no sampling option {unknown[0]}: it has {known or 'none'}")
    for name, value in chosen.items():
        hint = get_type_hints(model.sample).get(name)
        numbers = [number for number in (float, int) if number in (hint, *get_args(hint))]
        if numbers and not isinstance(value, (int, *numbers)):
            raise UserError(f"--options.{name} must be {'an int' if numbers == [int] else 'a number'}, got {value}")
    with forked_rng(seed, device):
        labels = None
        if label is not None:
            own = torch.arange(classes) if label == "each" else torch.tensor([label])
            labels = own.repeat_interleave(n // len(own)).to(device)
        parts = torch.arange(n).split(batch_size)
        images = [
            draw(model, len(i), None if labels is None else labels[i], **chosen).cpu()
            for i in tracked(parts, f"{n:,} samples")
        ]
        x = torch.cat(images)
    if kind == ".png":
        save_png(grid(x, n // classes) if label == "each" else grid(x), target)
    elif kind == ".npz":
        import numpy as np

        with atomic_write(target) as file:
            np.savez_compressed(file, images=to_uint8(x).permute(0, 2, 3, 1).numpy())
    else:
        for i, image in enumerate(x):
            save_png(image, target / f"{i:06d}.png")
    used = ({"label": "none" if label is None else label} if classes else {}) | chosen
    settings = "".join(f", {name} {value}" for name, value in used.items())
    print(f"{n} samples of {type(model).__name__}{settings}: {target}")


def export(ckpt_path: str, output: str) -> None:
    """Export the model of a checkpoint: safetensors, config.json, and its networks as `torch.export` programs.

    Args:
        ckpt_path: Checkpoint written by a training run.
        output: Folder for ``model.safetensors``, ``config.json`` and ``<network>.pt2`` (`torch.export`).
    """
    model: Any = load_model(ckpt_path)
    require_new(*(Path(output) / f"{name}.pt2" for name in model.programs()))  # before anything is written
    model.save_pretrained(output)
    programs = export_programs(model, output)
    print(f"{type(model).__name__}: {output}/model.safetensors, {output}/config.json, {', '.join(map(str, programs))}")


def report(args: list[str]) -> None:
    """Write a page of runs: ``train.py report RUN_OR_CHECKPOINT... [--output report.html] [--overwrite]``."""
    from lit_generative.report.page import write_report
    from lit_generative.report.runs import runs_of

    parser = argparse.ArgumentParser("train.py report", description="Write one HTML page that compares trained models.")
    parser.add_argument("runs", nargs="+", help="folders of runs, checkpoints in them, or results.json of tests")
    parser.add_argument("--output", default="report.html", help="the page")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there")
    options = parser.parse_args(args)
    output = Path(options.output)
    if not options.overwrite:
        require_new(output)
    runs = runs_of(options.runs)
    write_report(runs, output)
    print(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {output}")
