"""Quality, diversity and speed of several models in one table and one plot, by the one protocol of evaluate.yaml.

    python benchmarks/trilemma.py CHECKPOINT_OR_RESULTS... [--output runs/trilemma] [-- further arguments of a test]

A checkpoint is evaluated with ``configs/evaluate.yaml``; a ``results.json`` of an evaluation is taken as it is. Writes
``<output>/trilemma.md`` and ``trilemma.png``. Distances over different extractors stand apart.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")


def main():
    args, further = sys.argv[1:], []
    if "--" in args:
        args, further = args[: args.index("--")], args[args.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="checkpoints, or results.json of evaluations")
    parser.add_argument("--output", type=Path, default=Path("runs/trilemma"), help="folder of the table and the plot")
    options = parser.parse_args(args)
    if not options.models:
        print("nothing to compare: give checkpoints, or results.json of their evaluations")
        return
    if missing := [str(path) for path in options.models if not path.is_file()]:
        sys.exit(f"error: no such file: {', '.join(missing)}")
    results = {}
    for path in map(Path.resolve, options.models):
        checkpoint = path.suffix == ".ckpt"
        found = json.loads((evaluate(path, options.output, further) if checkpoint else path).read_text())
        run = path.parents[1] if checkpoint else path.parents[2] if path.parents[1].name == "test" else path.parent
        name = "/".join([run.parent.name, run.name, *([path.stem] if checkpoint else [])])
        results[name] = found
    table = tabulate({name: found["row"] for name, found in results.items()})
    protocols = "\n".join(f"* {name}: {'; '.join(found['protocol'].values())}" for name, found in results.items())
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "trilemma.md").write_text(f"{table}\n\n{protocols}\n")
    print(f"{table}\n\n{options.output / 'trilemma.md'}")
    plot({name: found["metrics"] for name, found in results.items()}, options.output / "trilemma.png")


def evaluate(checkpoint, output, further):
    """Run the evaluation in a process of its own; its results.json."""
    folder = output / checkpoint.parents[2].name
    command = [sys.executable, ROOT / "train.py", "test", "--ckpt_path", checkpoint]
    command += ["--config", ROOT / "configs" / "evaluate.yaml", "--trainer.default_root_dir", folder, "--name", "test"]
    subprocess.run([*map(str, command), *further], check=True)
    return max(folder.glob("test/version_*/results.json"), key=lambda path: path.stat().st_mtime)


def tabulate(rows):
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["run", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(row.get(column, "-") for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(metrics, path):
    """Distance against speed, coloured by recall: good is at the lower right, and bright."""
    from matplotlib.figure import Figure

    distances = sorted({key for m in metrics.values() for key, value in m.items() if key.startswith("fid_") and value})
    if not distances:
        return
    figure = Figure(figsize=(6 * max(1, len(distances)), 4.5), dpi=100, layout="constrained")
    for axes, distance in zip(figure.subplots(1, len(distances), squeeze=False)[0], distances, strict=True):
        shown = {name: m for name, m in metrics.items() if m.get(distance)}
        for shape, (name, m) in zip(SHAPES * len(shown), shown.items(), strict=False):
            speed, recall = m["samples_per_second"], m.get("recall", float("nan"))
            points = axes.scatter(
                speed, m[distance], 90, recall, marker=shape, vmin=0, vmax=1, plotnonfinite=True, label=name
            )
        axes.set(xscale="log", xlabel="samples/s", ylabel=distance, title="good: lower right, bright")
        axes.legend(frameon=False)
        figure.colorbar(points, ax=axes, label="recall")
    figure.savefig(path)
    print(path)


if __name__ == "__main__":
    main()
