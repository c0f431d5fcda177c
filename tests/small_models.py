"""Every model, small; and the arguments with which each is trained in one piece, and killed again and again."""

import json

import pytest

VAE = {"class_path": "lit_generative.models.vae.VAE", "init_args": {"hidden": [8], "latent": 3}}
SMALL = {
    "VAE": {"hidden": [8], "latent": 2, "lr_decay_start": 0.5},
    "IWAE": {"hidden": [8], "latent": 2, "k": 3, "likelihood": "logistic"},
    "BetaVAE": {"hidden": [8], "latent": 2, "lr_decay_start": 0.5},
    "FactorVAE": {"hidden": [8], "latent": 2, "units": 8, "layers": 1},
    "CSVAE": {"hidden": [8], "latent": 2, "components": 3},
    "EstimatedVAE": {"hidden": [8], "latent": 2, "gradient": "score_function", "draws": 2},
    "RealNVP": {"width": 4, "scales": 1},
    "ResidualFlow": {"width": 4, "scales": 2, "blocks": 1, "eval_terms": 4},
    "LatentFlow": {"hidden": [8], "latent": 4, "couplings": 2, "width": 8},
    "DCGAN": {"width": 4, "latent": 4},
    "WGAN": {"width": 4, "latent": 4, "n_critic": 2},
    "WGANGP": {"width": 4, "latent": 4, "n_critic": 3, "accumulate_grad_batches": 2},
    "R3GAN": {"width": 4, "latent": 4, "group": 4, "augment": ["translation", "cutout"]},
    "Pix2Pix": {"image_shape": [3, 16, 16], "num_downs": 3, "width": 4, "patch": 16},
    "CycleGAN": {"image_shape": [3, 16, 16], "width": 4, "blocks": 1, "patch": 16, "pool": 20},
    "DDPM": {"channels": [8, 8], "groups": 4, "steps": 20, "lr_warmup_steps": 4},
    "FlowMatching": {"channels": [8, 8], "groups": 4, "ode_steps": 2, "coupling": "optimal_transport"},
    "LatentDiffusion": {"autoencoder": VAE, "width": 8, "depth": 1, "steps": 20},
}
FAMILIES = ("VAE", "RealNVP", "DCGAN", "DDPM", "Pix2Pix")  # one model of each, for `make test-fast`
TRAINER = {
    "IWAE": ["--trainer.accumulate_grad_batches=2"],
    "BetaVAE": ["--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=3"],
    "WGANGP": ["--trainer.max_steps=10"],
    "DDPM": ["--trainer.max_steps=10"],
    # their first run is not killed but ends by itself, at the end of an epoch and within one
    "RealNVP": ["--trainer.max_epochs=3", "--trainer.max_steps=15"],
    "WGAN": ["--trainer.max_epochs=3", "--trainer.max_steps=15"],
}
ENDS = {"RealNVP": 5, "WGAN": 3}
STEPS = {"IWAE": 6, "RealNVP": 15, "WGAN": 15}  # others: 10
# (moment, how often it comes after a start)
KILLS = (("batch", 4), ("save", 2), ("epoch", 1), ("line", 2), ("validation", 1))
AVERAGED = {
    "VAE": "decoder",
    "RealNVP": "flow",
    "DCGAN": "generator",
    "WGANGP": "generator",
    "Pix2Pix": "generator",
    "CycleGAN": "generator",
    "DDPM": "denoiser",
}


def slow(model):
    """The mark of a test of a model by this name."""
    return [] if model in FAMILIES else [pytest.mark.slow]


def command(model, streets):
    args = ["fit", f"--model={model}", "--data=FashionMNIST", "--data.batch_size=16", "--data.val_size=16"]
    args += [f"--model.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in SMALL[model].items()]
    if model in ("Pix2Pix", "CycleGAN"):
        args[2] = "--data=PairedFolder"
        args += [f"--data.data_dir={streets}", "--data.image_size=16", f"--data.cache_dir={streets}/cache"]
    callbacks = []
    if model in AVERAGED:
        callbacks = [{"class_path": "callbacks.EMA", "init_args": {"networks": [AVERAGED[model]]}}]
    args += [f"--trainer.{k}={v}" for k, v in {
        "callbacks": json.dumps(callbacks), "max_epochs": 2, "log_every_n_steps": 2, "accelerator": "cpu",
        "enable_progress_bar": "false", "enable_model_summary": "false",
    }.items()]  # fmt: skip
    return [*args, *TRAINER.get(model, ()), "--name=run", "--save_every=1", "--resume"]
