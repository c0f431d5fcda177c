"""All losses of GANs with the same networks, data and time: distances, and a picture of each.

    OMP_NUM_THREADS=1 python benchmarks/gan_losses.py --minutes 10 [--width 32] [--data FashionMNIST] [--seeds 0] \
        [--output runs/gan_losses] [-- further arguments of a training]

Each is trained for the time from its start, averaged weights, and tested with 5,000 samples; what the output folder
holds already is taken from there. Writes ``gan_losses.md``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOSSES = {
    "non-saturating": ["DCGAN"],
    "non-saturating, spectral norm": ["DCGAN", "--model.spectral_norm", "true"],
    "Wasserstein, clipped": ["WGAN", "--model.lr", "3.0e-4", "--model.n_critic", "3"],
    "Wasserstein, gradient penalty": ["WGANGP", "--model.lr", "3.0e-4", "--model.n_critic", "2"],
    "pairs, R1 + R2": ["R3GAN", "--model.network", "dcgan"],
}
COLUMNS = {"steps": ",.0f", "fid": ".2f", "precision": ".3f", "recall": ".3f", "density": ".3f", "coverage": ".3f"}


def main():
    args, further = sys.argv[1:], []
    if "--" in args:
        args, further = args[: args.index("--")], args[args.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="of each training")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--data", default="FashionMNIST", help="a data set of 28 pixels")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/gan_losses"), help="folder of everything written")
    options = parser.parse_args(args)
    if options.minutes is None:
        print("nothing to train: give --minutes")
        return
    lines = [["loss", "seed", "generator's steps", *list(COLUMNS)[1:]], ["---"] + ["---:"] * (len(COLUMNS) + 1)]
    for loss, model in LOSSES.items():
        for seed in options.seeds:
            metrics = measure(loss, model, seed, options, further)
            lines.append([loss, str(seed), *(f"{metrics[key]:{form}}" for key, form in COLUMNS.items())])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (options.output / "gan_losses.md").write_text(f"{table}\n")
    print(f"{table}\n\n{options.output / 'gan_losses.md'}")


def measure(loss, model, seed, options, further):
    """The numbers of a test, and the generator's steps, in processes of their own unless they are there."""
    slug = "".join(letter if letter.isalnum() else "_" for letter in loss)
    name = f"{options.data}_{slug}_{options.minutes:g}_{options.width}_{seed}"
    run = options.output / name / "version_0"
    checkpoint, shared = run / "checkpoints" / "last.ckpt", ["--trainer.enable_progress_bar", "false"]
    if not checkpoint.exists():
        averages = [{"class_path": "EMA", "init_args": {"decay": 0.999}}]
        command = ["fit", "--model", *model, "--model.width", options.width, "--data", options.data]
        command += ["--data.batch_size", 64, "--data.val_size", 1000, "--seed_everything", seed]
        command += ["--trainer.default_root_dir", options.output, "--name", name, "--trainer.limit_val_batches", 0]
        command += ["--trainer.max_time", f"00:00:{int(options.minutes):02}:{int(options.minutes * 60 % 60):02}"]
        command += ["--trainer.max_epochs", 1000, "--trainer.callbacks", json.dumps(averages)]
        launch([*command, *shared, *further])
    if not (found := sorted(run.glob("test/*/results.json"))):
        callbacks = [{"class_path": "FID", "init_args": {"num_samples": 5000}}, {"class_path": "SampleGrid"}]
        launch(["test", "--ckpt_path", checkpoint, "--trainer.callbacks", json.dumps(callbacks), *shared])
        found = sorted(run.glob("test/*/results.json"))
    metrics = json.loads(found[-1].read_text())["metrics"]
    steps = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    column = steps[0].index("train/generator_steps")
    distance = next(value for key, value in metrics.items() if key.startswith("fid_"))
    return metrics | {"fid": distance, "steps": float([row[column] for row in steps[1:] if row[column]][-1])}


def launch(arguments):
    subprocess.run([sys.executable, str(ROOT / "train.py"), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
