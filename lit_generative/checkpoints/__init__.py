"""Checkpoints: which are kept, how they are written and read, and where other weights come from."""

from lit_generative.checkpoints.load import load_model, read_checkpoint
from lit_generative.checkpoints.pretrained import from_pretrained, init_from, save_pretrained
from lit_generative.checkpoints.record import CheckpointError

__all__ = ["CheckpointError", "from_pretrained", "init_from", "load_model", "read_checkpoint", "save_pretrained"]
