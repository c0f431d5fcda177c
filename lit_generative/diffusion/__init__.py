"""Gaussian diffusion as pure functions."""
