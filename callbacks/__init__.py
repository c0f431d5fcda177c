"""Callbacks that look at any model through its protocols, one per file."""

from callbacks.ema import EMA
from callbacks.fid import FID
from callbacks.film import Film
from callbacks.latent_interpolation import LatentInterpolation
from callbacks.latent_manifold import LatentManifold
from callbacks.nearest_neighbours import NearestNeighbours
from callbacks.ood_scores import OODScores
from callbacks.prediction_writer import PredictionWriter
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.report import Report
from callbacks.sample_grid import SampleGrid

__all__ = [
    "EMA",
    "FID",
    "Film",
    "LatentInterpolation",
    "LatentManifold",
    "NearestNeighbours",
    "OODScores",
    "PredictionWriter",
    "ReconstructionGrid",
    "Report",
    "SampleGrid",
]
