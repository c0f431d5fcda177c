"""The first lines of a run: model, data, length and device."""

import os
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.base import datamodule_of
from callbacks.reporting._lines import fact
from lit_generative.protocols import HasSizes

USED = {
    TrainerFn.FITTING: ("train", "val"),
    TrainerFn.VALIDATING: ("val",),
    TrainerFn.TESTING: ("test",),
    TrainerFn.PREDICTING: ("test",),
}


def heading(trainer: Trainer, model: LightningModule, networks: bool) -> list[str]:
    """Model, data, length and device of a run; with ``networks`` the parameters of each network."""
    data = datamodule_of(trainer)
    lines = [fact("model", describe_model(model, networks))]
    if data is not None:
        lines.append(fact("data", _describe_data(data, USED[trainer.state.fn or TrainerFn.FITTING])))
    if trainer.state.fn == TrainerFn.FITTING:
        lines.append(fact("training", _describe_length(trainer, data)))
    lines.append(fact("device", _describe_device(trainer)))
    if trainer.ckpt_path is not None:
        lines.append(fact("checkpoint", str(trainer.ckpt_path)))
    return lines


def describe_model(model: LightningModule, networks: bool) -> str:
    """Class and number of parameters, and those of each network; modules without any, such as metrics, are left out."""
    count = sum(p.numel() for p in model.parameters())
    text = f"{type(model).__name__}, {count:,} parameters"
    parts = []
    for name, network in model.named_children() if networks else ():
        if size := sum(p.numel() for p in network.parameters()):
            frozen = not any(p.requires_grad for p in network.parameters())
            parts.append(f"{name} {size:,}{' (frozen)' * frozen}")
    return text + (f": {', '.join(parts)}" if parts else "")


def _describe_data(data: Any, splits: tuple[str, ...]) -> str:
    text = type(data).__name__
    if not isinstance(data, HasSizes):
        return text
    text += f", {'x'.join(map(str, data.image_shape))}"
    text += "" if data.binarize == "none" else f", binarised ({data.binarize})"
    sizes = data.sizes()
    counts = [f"{split} {sizes[split]:,}" for split in splits if sizes.get(split)]
    return text + (f": {', '.join(counts)}" if counts else "")


def _describe_length(trainer: Trainer, data: Any) -> str:
    limits = {"epoch": trainer.max_epochs or -1, "step": trainer.max_steps}
    known = [f"{limit:,} {name}{'s' * (limit > 1)}" for name, limit in limits.items() if limit != -1]
    text = " or ".join(known) or "until it is stopped"
    if isinstance(data, HasSizes):
        processes = f" x {trainer.world_size} processes" if trainer.world_size > 1 else ""
        text += f", batches of {data.batch_size:,}{processes}"
    return text


def _describe_device(trainer: Trainer) -> str:
    device, seed = trainer.strategy.root_device, os.environ.get("PL_GLOBAL_SEED")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' * (threads > 1)}"
    else:
        name = device.type.upper()
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    return f"{count}{name}, precision {trainer.precision}" + (f", seed {seed}" if seed is not None else "")
