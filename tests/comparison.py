"""Where two checkpoints differ."""

import torch


def differing(a, b, place=""):
    """The places in which two checkpoints differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differing(a[key], b[key], f"{place}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in differing(*pair, f"{place}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [place]
