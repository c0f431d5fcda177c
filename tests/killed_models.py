"""``python killed_models.py STREETS``: every model, trained in one piece, and killed again and again on its way.

Runs lie in ``MODEL/whole`` and ``MODEL/killed`` of the current folder; every process's exit status is printed.
"""

import json
import multiprocessing
import os
import sys

from killed_run import arm

import lit_generative.models
import train
from lit_generative.checkpoints import known_classes
from lit_generative.module import GenerativeModel

VAE = {"class_path": "lit_generative.models.vae.VAE", "init_args": {"hidden": [8], "latent": 3}}
SMALL = {
    "VAE": {"hidden": [8], "latent": 2, "decay_from": 0.5},
    "IWAE": {"hidden": [8], "latent": 2, "k": 3, "likelihood": "logistic"},
    "BetaVAE": {"hidden": [8], "latent": 2, "decay_from": 0.5},
    "FactorVAE": {"hidden": [8], "latent": 2, "units": 8, "layers": 1},
    "RealNVP": {"width": 4, "scales": 1},
    "LatentFlow": {"hidden": [8], "latent": 4, "couplings": 2, "width": 8},
    "DCGAN": {"width": 4, "latent": 4},
    "WGAN": {"width": 4, "latent": 4, "n_critic": 2},
    "WGANGP": {"width": 4, "latent": 4, "n_critic": 3, "accumulate": 2},
    "Pix2Pix": {"image_shape": [3, 16, 16], "levels": 3, "width": 4, "patch": 16},
    "DDPM": {"channels": [8, 8], "groups": 4, "steps": 20, "warmup": 4},
    "LatentDiffusion": {"autoencoder": VAE, "width": 8, "depth": 1, "steps": 20},
}
TRAINER = {
    "IWAE": ["--trainer.accumulate_grad_batches=2"],
    "BetaVAE": ["--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=3"],
}
KILLS = (("batch", 4), ("save", 2), ("line", 2), ("validation", 1))  # each time one comes so often after a start
AVERAGED = {
    "VAE": "decoder",
    "RealNVP": "flow",
    "DCGAN": "generator",
    "WGANGP": "generator",
    "Pix2Pix": "generator",
    "DDPM": "denoiser",
}


def command(model, streets):
    args = ["fit", f"--model={model}", "--data=FashionMNIST", "--data.batch_size=16", "--data.val_size=16"]
    args += [f"--model.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in SMALL[model].items()]
    if model == "Pix2Pix":
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


def attempt(folder, args, model, moment, n):
    folder = os.path.join(model.__name__, folder)
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    arm(moment, n, model)
    train.main(args)


def main(streets):
    fork = multiprocessing.get_context("fork")  # the packages are imported once
    for model in known_classes(GenerativeModel, lit_generative.models.__name__):
        args, codes = command(model.__name__, streets), []
        for folder, moment, n in (
            ("whole", "never", 0),
            *(("killed", *kill) for kill in KILLS),
            ("killed", "never", 0),
        ):
            process = fork.Process(target=attempt, args=(folder, args, model, moment, n))
            process.start()
            process.join()
            codes.append(process.exitcode)
        print("ended:", model.__name__, *codes, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
