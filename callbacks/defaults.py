"""The callbacks that the command line adds where the user has chosen none of their kind."""

from typing import Any

from lightning.pytorch import Callback

from callbacks.evaluation.bayes_classifier import BayesClassifier
from callbacks.evaluation.translation_scores import TranslationScores
from callbacks.visualization.reconstruction_grid import ReconstructionGrid
from callbacks.visualization.sample_grid import SampleGrid
from callbacks.visualization.translation_grid import TranslationGrid
from lit_generative.protocols import HasLogProb, Reconstructs, Samples, Translates


def default_callbacks(model: Any, data: Any, chosen: list[Callback], tests: bool) -> list[Callback]:
    """Grids of what a model can do, unless one was chosen; in a test also scores of translations and of classes."""
    classifies = tests and isinstance(model, HasLogProb) and getattr(model, "classes", 0) > 0
    if classifies and not any(isinstance(callback, BayesClassifier) for callback in chosen):
        return [BayesClassifier(), *_grids(model, data, chosen, tests)]
    return _grids(model, data, chosen, tests)


def _grids(model: Any, data: Any, chosen: list[Callback], tests: bool) -> list[Callback]:
    if any(isinstance(callback, SampleGrid | ReconstructionGrid | TranslationGrid) for callback in chosen):
        return []
    if isinstance(model, Translates):
        return [TranslationGrid(), *([TranslationScores()] if tests and getattr(data, "paired", True) else [])]
    grids = {Samples: SampleGrid, Reconstructs: ReconstructionGrid}
    return [grid() for protocol, grid in grids.items() if isinstance(model, protocol)]
