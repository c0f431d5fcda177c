"""Callbacks that report what a run does, to the terminal, to files or to W&B."""
