"""Callbacks that look at any model through its protocols, one per file."""

from callbacks.fid import FID
from callbacks.ood_scores import OODScores
from callbacks.prediction_writer import PredictionWriter
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.report import Report
from callbacks.sample_grid import SampleGrid

__all__ = ["FID", "OODScores", "PredictionWriter", "ReconstructionGrid", "Report", "SampleGrid"]
