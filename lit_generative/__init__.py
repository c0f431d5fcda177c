"""Deep generative models as LightningModules: one file per paper, one contract, one evaluation protocol."""
