"""Callbacks that draw what a model makes."""
