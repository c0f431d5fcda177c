"""What a model learns faster that has learned other images before: MNIST first, then shares of Fashion-MNIST.

    python benchmarks/finetune.py vae|ddpm [--shares 0.01 0.1 1] [--before 2000] [--steps 1000] [--output runs/finetune]

Trains the recipe on MNIST for ``--before`` batches; then, for every share of Fashion-MNIST's training images, for
``--steps`` batches from those weights and from scratch, and tests the best checkpoint of each. What the output folder
holds already is taken from there. Writes ``<recipe>.md`` and ``<recipe>.png``, the losses in validation.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from lit_generative.checkpoints.load import read_checkpoint

ROOT = Path(__file__).parents[1]
TRAIN = 60_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", choices=("vae", "ddpm"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--before", type=int, default=2000, help="batches of MNIST")
    parser.add_argument("--steps", type=int, default=1000, help="batches of Fashion-MNIST")
    parser.add_argument("--num_samples", type=int, default=2000, help="for the Fréchet distance")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune"), help="folder of everything written")
    args = parser.parse_args()
    if args.recipe is None:
        print("nothing to train: name a recipe, vae or ddpm")
        return
    config, output = ROOT / "configs" / f"{args.recipe}_fashion_mnist.yaml", args.output.absolute()
    first = fit(config, output, f"{args.recipe}_before", args.before, 5000, "--data=MNIST")
    lines, curves = [["training images", "from", "NLL, nats", "bits/dim", "fid"], ["---:", "---", *["---:"] * 3]], {}
    for share in args.shares:
        images = round(share * (TRAIN - 5000))
        for source, more in (("scratch", []), ("MNIST", [f"--init_from={first}/checkpoints/best.ckpt"])):
            run = fit(config, output, f"{args.recipe}_{images}_{source}", args.steps, TRAIN - images, *more)
            metrics = test(run, args.num_samples)
            distance = next(value for name, value in metrics.items() if name.startswith("fid_"))
            lines.append([f"{images:,}", source, f"{metrics['nll']:.1f}", f"{metrics['bpd']:.3f}", f"{distance:.2f}"])
            curves[f"{images:,} images, from {source}"] = losses(run)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (output / f"{args.recipe}.md").write_text(f"{table}\n")
    draw(curves, output / f"{args.recipe}.png")
    print(f"{table}\n\n{output / args.recipe}.md, .png")


def fit(config, output, name, steps, held_out, *more):
    """The folder of a run, trained to its end unless it was; one that was interrupted goes on."""
    name = f"{name}_{steps}"
    folder = newest(output / name)
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file() or read_checkpoint(last)["global_step"] < steps:
        every = max(1, steps // 20)
        command = [sys.executable, ROOT / "train.py", "fit", "--config", config, "--name", name, "--resume", *more]
        command += ["--trainer.default_root_dir", output, "--data.val_size", held_out, "--trainer.callbacks", "[]"]
        command += ["--trainer.max_epochs", -1, "--trainer.max_steps", steps, "--trainer.limit_val_batches", 20]
        command += ["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", every]
        subprocess.run([*map(str, command), "--trainer.enable_progress_bar", "false"], check=True)
    return newest(output / name)


def newest(runs):
    numbers = [int(path.name.removeprefix("version_")) for path in runs.glob("version_*")]
    return runs / f"version_{max(numbers, default=0)}"


def test(run, num_samples):
    if not (found := sorted(run.glob("test/*/results.json"))):
        fid = [{"class_path": "FID", "init_args": {"num_samples": num_samples}}]
        command = [sys.executable, ROOT / "train.py", "test", "--ckpt_path", run / "checkpoints" / "best.ckpt"]
        command += ["--trainer.callbacks", json.dumps(fid), "--trainer.limit_test_batches", 20]
        subprocess.run([*map(str, command), "--trainer.enable_progress_bar", "false"], check=True)
        found = sorted(run.glob("test/*/results.json"))
    return json.loads(found[-1].read_text())["metrics"]


def losses(run):
    """Steps and losses in validation."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/loss")]
    return [int(row["step"]) + 1 for row in rows], [float(row["val/loss"]) for row in rows]


def draw(curves, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, (steps, values)) in enumerate(curves.items()):
        axes.plot(steps, values, "--" if name.endswith("scratch") else "-", color=f"C{i // 2}", label=name)
    best = min(min(values) for _, values in curves.values())
    axes.set(xlabel="batches", ylabel="loss in validation", ylim=(best - 0.02 * abs(best), best + 0.5 * abs(best)))
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
