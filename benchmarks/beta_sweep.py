"""What beta buys: rate against distortion, and the Fréchet distances, over a range of beta (and FactorVAE's gamma).

    python benchmarks/beta_sweep.py --betas 0.25 1 4 16 --gammas 5 20 [--output runs/beta_sweep] [-- arguments of fit]

Trains `beta_vae_fashion_mnist` (and `factor_vae_fashion_mnist`) once for every value and tests each with
``configs/evaluate_latents.yaml``; what the output folder holds already is taken from there. Writes ``sweep.md``,
``rate_distortion.png`` and ``distances.png``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = {
    "elbo": ("ELBO", ".1f"),
    "kl": ("KL", ".2f"),
    "reconstruction": ("Reconstruction", ".1f"),
    "fid_reconstructions": ("Distance of reconstructions", ".2f"),
    "fid": ("of samples", ".2f"),
    "active_units": ("Active units", ".0f"),
    "mutual_information": ("Mutual information", ".2f"),
    "total_correlation": ("Total correlation", ".2f"),
    "dimension_wise_kl": ("Dimension-wise KL", ".2f"),
}


def main():
    args, further = sys.argv[1:], []
    if "--" in args:
        args, further = args[: args.index("--")], args[args.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", nargs="*", type=float, default=[], help="weights of the KL term")
    parser.add_argument("--gammas", nargs="*", type=float, default=[], help="weights of the total correlation")
    parser.add_argument("--beta-recipe", type=Path, default=ROOT / "configs" / "beta_vae_fashion_mnist.yaml")
    parser.add_argument("--gamma-recipe", type=Path, default=ROOT / "configs" / "factor_vae_fashion_mnist.yaml")
    parser.add_argument("--output", type=Path, default=Path("runs/beta_sweep"), help="folder of everything written")
    options = parser.parse_args(args)
    runs = [("beta", value, options.beta_recipe) for value in options.betas]
    runs += [("gamma", value, options.gamma_recipe) for value in options.gammas]
    if not runs:
        print("nothing to train: give --betas 0.25 1 4 16, or --gammas 5 20")
        return
    results = {(name, value): run(name, value, recipe, options.output, further) for name, value, recipe in runs}
    table = tabulate(results)
    (options.output / "sweep.md").write_text(f"{table}\n")
    print(f"{table}\n\n{options.output / 'sweep.md'}")
    plot(results, options.output / "rate_distortion.png", {"reconstruction": "distortion"}, over="kl")
    distances = {"fid": "samples", "fid_reconstructions": "reconstructions"}
    plot(results, options.output / "distances.png", distances, over=None)


def run(name, value, recipe, output, further):
    """The test's numbers of one value, trained and tested in processes of their own unless they are there."""
    folder = output / f"{name}_{value:g}"
    if not (found := list(folder.glob("**/results.json"))):
        train = [sys.executable, ROOT / "train.py"]
        fit = [
            "fit",
            "--config",
            recipe,
            f"--model.{name}",
            value,
            "--trainer.default_root_dir",
            folder,
            "--name",
            "run",
        ]
        subprocess.run([*map(str, [*train, *fit]), *further], check=True)
        checkpoint = max(folder.glob("run/version_*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
        test = ["test", "--ckpt_path", checkpoint, "--config", ROOT / "configs" / "evaluate_latents.yaml"]
        subprocess.run(list(map(str, [*train, *test])), check=True)
        found = list(folder.glob("**/results.json"))
    metrics = json.loads(found[-1].read_text())["metrics"]
    # distances without their extractor's name, which is the same throughout
    short = {key.split("_lenet")[0].split("_inception")[0]: v for key, v in metrics.items() if key.startswith("fid_")}
    return metrics | short


def tabulate(results):
    lines = [["", *(title for title, _ in COLUMNS.values())], ["---"] + ["---:"] * len(COLUMNS)]
    for (name, value), metrics in results.items():
        lines.append([f"{name} = {value:g}", *(f"{metrics[key]:{form}}" for key, (_, form) in COLUMNS.items())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(results, path, curves, over):
    """Curves of named quantities, one set per kind of weight, over a quantity or (None) over the weight itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for weight in dict.fromkeys(name for name, _ in results):
        points = {value: metrics for (name, value), metrics in sorted(results.items()) if name == weight}
        x = list(points) if over is None else [metrics[over] for metrics in points.values()]
        for quantity, label in curves.items():
            y = [metrics[quantity] for metrics in points.values()]
            axes.plot(x, y, "o-", label=f"{label}, over {weight}")
            for value, a, b in zip(points, x, y, strict=True):
                axes.annotate(f" {value:g}", (a, b))
    if over is None:
        axes.set(xlabel="weight", xscale="log", ylabel="Fréchet distance to test images")
    else:
        axes.set(xlabel="rate: KL, nats", ylabel="distortion: reconstruction, nats")
    axes.legend(frameon=False)
    figure.savefig(path)
    print(path)


if __name__ == "__main__":
    main()
