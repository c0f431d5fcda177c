"""Deep generative models as LightningModules: one file per paper, one contract, one evaluation protocol."""

from lit_generative.models import *  # noqa: F403

__version__ = "0.1.0"
