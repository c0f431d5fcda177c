"""Deep generative models as LightningModules: one file per paper, one contract, one evaluation protocol."""

__version__ = "0.1.0"
