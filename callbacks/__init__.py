"""Callbacks that look at any model through its protocols, one per file."""

from callbacks.evaluation.disentanglement import Disentanglement
from callbacks.evaluation.fid import FID
from callbacks.evaluation.ood_scores import OODScores
from callbacks.evaluation.posterior_statistics import PosteriorStatistics
from callbacks.evaluation.reconstruction_fid import ReconstructionFID
from callbacks.evaluation.translation_fid import TranslationFID
from callbacks.evaluation.translation_scores import TranslationScores
from callbacks.reporting.prediction_writer import PredictionWriter
from callbacks.reporting.progress import Progress
from callbacks.reporting.report import Report
from callbacks.reporting.wandb_record import WandbRecord
from callbacks.training.check_monitors import CheckMonitors
from callbacks.training.ema import EMA
from callbacks.training.finetuning import Finetuning
from callbacks.training.save_on_signal import SaveOnSignal
from callbacks.training.skip_non_finite import SkipNonFinite
from callbacks.visualization.attribute_direction import AttributeDirection
from callbacks.visualization.denoising_animation import DenoisingAnimation
from callbacks.visualization.latent_interpolation import LatentInterpolation
from callbacks.visualization.latent_manifold import LatentManifold
from callbacks.visualization.latent_scatter import LatentScatter
from callbacks.visualization.latent_traversal import LatentTraversal
from callbacks.visualization.loss_curves import LossCurves
from callbacks.visualization.loss_per_time import LossPerTime
from callbacks.visualization.nearest_neighbours import NearestNeighbours
from callbacks.visualization.noising_animation import NoisingAnimation
from callbacks.visualization.reconstruction_grid import ReconstructionGrid
from callbacks.visualization.sample_grid import SampleGrid
from callbacks.visualization.training_animation import TrainingAnimation
from callbacks.visualization.translation_grid import TranslationGrid

__all__ = [
    "EMA",
    "FID",
    "AttributeDirection",
    "CheckMonitors",
    "DenoisingAnimation",
    "Disentanglement",
    "Finetuning",
    "LatentInterpolation",
    "LatentManifold",
    "LatentScatter",
    "LatentTraversal",
    "LossCurves",
    "LossPerTime",
    "NearestNeighbours",
    "NoisingAnimation",
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
    "TrainingAnimation",
    "TranslationFID",
    "TranslationGrid",
    "TranslationScores",
    "WandbRecord",
]
