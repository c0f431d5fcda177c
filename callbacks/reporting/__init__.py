"""Callbacks that tell a person, a file or W&B what a run did."""
