"""The callbacks that the command line adds where the user has chosen none of their kind."""

from typing import Any

from lightning.pytorch import Callback

from callbacks.evaluation.translation_scores import TranslationScores
from callbacks.visualization.reconstruction_grid import ReconstructionGrid
from callbacks.visualization.sample_grid import SampleGrid
from callbacks.visualization.translation_grid import TranslationGrid
from lit_generative.protocols import Reconstructs, Samples, Translates


def default_callbacks(model: Any, data: Any, chosen: list[Callback], tests: bool) -> list[Callback]:
    """Grids of what a model can do, and in a test of translations their scores; none beside a grid that was chosen."""
    if any(isinstance(callback, SampleGrid | ReconstructionGrid | TranslationGrid) for callback in chosen):
        return []
    if isinstance(model, Translates):
        return [TranslationGrid(), *([TranslationScores()] if tests and getattr(data, "paired", True) else [])]
    grids = {Samples: SampleGrid, Reconstructs: ReconstructionGrid}
    return [grid() for protocol, grid in grids.items() if isinstance(model, protocol)]
