"""Data sets other than a model's own."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_generative.errors import UserError


def other_sets(own: Any, given: Iterable[Any]) -> dict[str, Any]:
    """The given sets by name, without the model's ``own`` and without repetitions.

    A name is that of the class, with a number if there are several of it. A set without ``data_dir`` is looked for in
    that of the model's own set, if this may hold others; a folder of images is neither searched nor downloaded into.
    """
    distinct = {identity(own): own}
    for data in given:
        if own.among_others and data.hparams.get("data_dir") is None and own.hparams.get("data_dir") is not None:
            data.hparams["data_dir"] = own.hparams["data_dir"]
        if not own.among_others and Path(data.data_dir).resolve().is_relative_to(Path(own.data_dir).resolve()):
            data.download = False
        distinct.setdefault(identity(data), data)
    others: list[Any] = list(distinct.values())[1:]
    count, seen, named = Counter(data.name for data in others), Counter[str](), {}
    for data in others:
        seen[data.name] += 1
        named[f"{data.name}-{seen[data.name]}" if count[data.name] > 1 else data.name] = data
    return named


def identity(data: Any) -> tuple[Any, ...]:
    """What the stored images of a set depend on: its class, its folder, and some of its arguments."""
    return type(data), Path(data.data_dir).resolve(), *(data.hparams[name] for name in data.stored_depends_on)


def stored_test_images(trainer: Trainer, data: Any, strict: bool) -> Tensor | None:
    """The test images of a set, as stored; None where they are missing on a node, unless ``strict``.

    Raises:
        ValueError: They are missing.
    """
    images, failure = None, None
    for first in (True, False):  # the first process of a node downloads
        try:
            if first is (trainer.local_rank == 0):
                data.prepare_data()
                images = data.stored("test")[0]
        except UserError as error:
            failure = error
        trainer.strategy.barrier("ood")
    if failure is not None and strict:
        raise type(failure)(f"OODScores: {failure}") from failure
    if not trainer.strategy.reduce_boolean_decision(images is not None, all=True):  # on every node or on none
        rank_zero_info(f"out-of-distribution scores without {type(data).__name__}: {failure or 'another node'}")
        return None
    return images
