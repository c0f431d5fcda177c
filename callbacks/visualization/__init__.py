"""Callbacks that draw images and plots."""
