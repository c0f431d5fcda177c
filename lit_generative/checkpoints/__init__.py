"""Checkpoints: which are kept, how they are written and read, and where other weights come from."""

from lit_generative.checkpoints.load import CheckpointError, load_model, read_checkpoint
from lit_generative.checkpoints.pretrained import from_pretrained, save_pretrained

__all__ = ["CheckpointError", "from_pretrained", "load_model", "read_checkpoint", "save_pretrained"]
