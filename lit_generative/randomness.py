"""Looking at a model must not change its training: draws made for evaluation run under a forked, seeded RNG."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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
