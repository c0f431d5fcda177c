"""Seconds until help is printed: a bare LightningCLI against train.py, in fresh processes taking turns.

Also which heavy libraries ``import train`` brings along, and what two of them would cost.

    python benchmarks/startup.py [--rounds 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BARE = """
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
LightningCLI(LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True, args={args})
"""
LOADED = """
import sys, lightning.pytorch
before = set(sys.modules)
import train
for name in ("wandb", "torch_fidelity", "matplotlib"):
    when = "by Lightning" if name in before else "by train" if name in sys.modules else "no"
    print(f"{name}: {when}")
"""
VARIANTS = {
    "bare LightningCLI --help": ["-c", BARE.format(args=["--help"])],
    "train.py --help": ["train.py", "--help"],
    "bare LightningCLI fit --help": ["-c", BARE.format(args=["fit", "--help"])],
    "train.py fit --help": ["train.py", "fit", "--help"],
    "train.py sample --help": ["train.py", "sample", "--help"],
    "import lightning.pytorch": ["-c", "import lightning.pytorch"],
    "  and then wandb": ["-c", "import lightning.pytorch, wandb"],
    "  and then matplotlib.pyplot": ["-c", "import lightning.pytorch, matplotlib.pyplot"],
}
COMPARE = {"train.py --help": "bare LightningCLI --help", "train.py fit --help": "bare LightningCLI fit --help"}
COMPARE["train.py sample --help"] = "bare LightningCLI --help"
COMPARE |= {name: "import lightning.pytorch" for name in VARIANTS if name.startswith("  ")}


def run(arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])])}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def seconds(arguments):
    start = time.perf_counter()
    result = run(arguments)
    elapsed = time.perf_counter() - start
    return elapsed if result.returncode == 0 else None  # a library that is not installed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    variants = {name: command for name, command in VARIANTS.items() if seconds(command) is not None}  # and warms up
    for name in VARIANTS.keys() - variants.keys():
        if "import" not in name and "and then" not in name:
            sys.exit(f"failed: {name}\n{run(VARIANTS[name]).stderr}")
    rounds = [{name: seconds(command) for name, command in variants.items()} for _ in range(arguments.rounds)]

    print(f"{'fresh process':32} {'seconds':>8} {'over its base':>14}")
    for name in VARIANTS:
        if name not in variants:
            print(f"{name:32} {'not installed':>8}")
            continue
        over = ""
        if name in COMPARE:
            over = f"{statistics.median(times[name] - times[COMPARE[name]] for times in rounds):+.2f}"
        print(f"{name:32} {statistics.median(times[name] for times in rounds):8.2f} {over:>14}")
    print(f"protocol: {arguments.rounds} rounds in turns after one to warm the disk's cache; medians")
    print("bases: the bare LightningCLI with the same help (`sample`: its --help), and `import lightning.pytorch`")
    print("imported by `import train`? " + ", ".join(run(["-c", LOADED]).stdout.split("\n")).strip(", "))
    print("torch_fidelity, where installed, is imported by torchmetrics, which Lightning imports; nothing here does")


if __name__ == "__main__":
    main()
