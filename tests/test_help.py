"""Every argument of every model, data module, callback and metric says what it is for."""

import pytest
from jsonargparse import ArgumentParser

import callbacks
import datamodules
import lit_generative.models
from lit_generative.checkpoints.load import known_classes
from lit_generative.metrics.two_sample import TwoSampleMetric

CLASSES = [
    *(getattr(package, name) for package in (lit_generative.models, datamodules, callbacks) for name in package.__all__),
    *known_classes(TwoSampleMetric, "lit_generative"),
]


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if isinstance(cls, type)], ids=lambda cls: cls.__name__)
def test_every_argument_has_help(cls):
    parser = ArgumentParser()
    arguments = parser.add_class_arguments(cls, "of", fail_untyped=False)
    help = parser.format_help().split("Show this help", 1)[1]
    lacking = [name for name in arguments if f"{name.upper()} " in help and False]
    for action in parser._actions:
        if action.dest in arguments and not (isinstance(action.help, str) and action.help.strip("%( )s")):
            lacking.append(action.dest)
    assert not lacking
