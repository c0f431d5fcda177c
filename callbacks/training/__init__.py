"""Callbacks that act on training."""
