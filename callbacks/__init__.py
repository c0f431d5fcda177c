"""Callbacks that look at any model through its protocols, one per file."""

from callbacks.attribute_direction import AttributeDirection
from callbacks.check_monitors import CheckMonitors
from callbacks.denoising_film import DenoisingFilm
from callbacks.disentanglement import Disentanglement
from callbacks.ema import EMA
from callbacks.fid import FID
from callbacks.film import Film
from callbacks.finetuning import Finetuning
from callbacks.latent_interpolation import LatentInterpolation
from callbacks.latent_manifold import LatentManifold
from callbacks.latent_scatter import LatentScatter
from callbacks.latent_traversal import LatentTraversal
from callbacks.loss_curves import LossCurves
from callbacks.loss_per_time import LossPerTime
from callbacks.nearest_neighbours import NearestNeighbours
from callbacks.noising_film import NoisingFilm
from callbacks.ood_scores import OODScores
from callbacks.posterior_statistics import PosteriorStatistics
from callbacks.prediction_writer import PredictionWriter
from callbacks.progress import Progress
from callbacks.reconstruction_fid import ReconstructionFID
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.report import Report
from callbacks.sample_grid import SampleGrid
from callbacks.save_on_signal import SaveOnSignal
from callbacks.skip_non_finite import SkipNonFinite
from callbacks.translation_fid import TranslationFID
from callbacks.translation_grid import TranslationGrid
from callbacks.translation_scores import TranslationScores
from callbacks.wandb_record import WandbRecord

__all__ = [
    "EMA",
    "FID",
    "AttributeDirection",
    "CheckMonitors",
    "DenoisingFilm",
    "Disentanglement",
    "Film",
    "Finetuning",
    "LatentInterpolation",
    "LatentManifold",
    "LatentScatter",
    "LatentTraversal",
    "LossCurves",
    "LossPerTime",
    "NearestNeighbours",
    "NoisingFilm",
    "OODScores",
    "PosteriorStatistics",
    "PredictionWriter",
    "Progress",
    "ReconstructionFID",
    "ReconstructionGrid",
    "Report",
    "SampleGrid",
    "SaveOnSignal",
    "SkipNonFinite",
    "TranslationFID",
    "TranslationGrid",
    "TranslationScores",
    "WandbRecord",
]
