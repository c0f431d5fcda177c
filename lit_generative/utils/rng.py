"""Looking at a model must not change its training: draws made for evaluation run under a forked, seeded RNG."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor


@contextmanager
def forked_rng(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators (CPU and ``device``) for the block, then restore them as they were.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> before = torch.random.get_rng_state()
    >>> with forked_rng(7):
    ...     a = torch.rand(2)
    >>> with forked_rng(7):
    ...     b = torch.rand(2)
    >>> bool((a == b).all()), bool((torch.random.get_rng_state() == before).all())
    (True, True)
    """
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        torch.manual_seed(seed)
        yield


def mixed_seed(*numbers: int) -> int:
    """One seed from several numbers, so that neighbouring seeds and batches share nothing.

    >>> mixed_seed(0, 1) == mixed_seed(1, 0)
    False
    """
    # torch's CPU generator keeps only 32 bits of its seed
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def stage_seed(seed: int, validating: bool) -> int:
    """``seed`` itself in test, another in validation: checkpoints are not to be chosen by the noise of their test.

    >>> stage_seed(3, validating=False), stage_seed(3, validating=True) != 3
    (3, True)
    """
    return mixed_seed(seed, 1) if validating else seed


def batch_rng(model: LightningModule, batch_idx: int) -> AbstractContextManager[None]:
    """`forked_rng` for what a model draws when it is evaluated on a batch: the same every time the stage is run."""
    seed = batch_idx * model.trainer.world_size + model.global_rank
    return forked_rng(stage_seed(seed, model.trainer.validating), model.device)


def rng_states(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's generators, uint8 vectors: ``cpu``, and ``cuda`` on such a device."""
    states = {"cpu": torch.random.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_rng_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `rng_states` gave."""
    torch.random.set_rng_state(states["cpu"].clone())  # of a row in a table torch would read another place
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].clone(), device)
