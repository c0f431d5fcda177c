"""Every argument of every model, data module, callback and metric says what it is for."""

import inspect

import pytest
from jsonargparse import ArgumentParser

import callbacks
import datamodules
import lit_generative.models
from lit_generative.checkpoints.load import known_classes
from lit_generative.metrics.two_sample import TwoSampleMetric

PACKAGES = (lit_generative.models, datamodules, callbacks)
PUBLIC = [getattr(package, name) for package in PACKAGES for name in package.__all__]
CLASSES = [cls for cls in PUBLIC if isinstance(cls, type) and not issubclass(cls, Exception)]


@pytest.mark.parametrize("cls", [*CLASSES, *known_classes(TwoSampleMetric, "lit_generative")], ids=lambda c: c.__name__)
def test_every_argument_has_help(cls):
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "of")
    arguments = [action for action in parser._actions if action.dest.startswith("of.")]
    assert [action.dest for action in arguments if not (action.help or "").strip()] == []
    if "__init__" in vars(cls) and cls.__init__.__code__.co_argcount > 1:
        assert arguments


SEEDED = [c for c in CLASSES if any("seed" in inspect.signature(parent).parameters for parent in c.__mro__[:-1])]


@pytest.mark.parametrize("cls", SEEDED, ids=lambda cls: cls.__name__)
def test_the_arguments_of_parents_can_be_given_too(cls):
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "of")
    assert "of.seed" in {action.dest for action in parser._actions}
