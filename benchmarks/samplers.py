"""Samplers of a diffusion model against one another: distance, diversity and speed at the same number of samples.

    python benchmarks/samplers.py CHECKPOINT [--num_samples 2000] [--output runs/samplers] [sampler:steps ...]

    python benchmarks/samplers.py last.ckpt dpm_solver:10 dpm_solver:20 ddim:50 ancestral:1000

Each is a test of its own, with the same noise, over two batches of images; what the output folder holds of this
checkpoint already is taken from there. Writes ``samplers.md``.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEFAULT = ["dpm_solver:10", "dpm_solver:20", "ddim:10", "ddim:20", "ddim:50", "ddim:100", "ancestral:1000"]
COLUMNS = {"fid": ".2f", "kid": ".4f", "precision": ".3f", "recall": ".3f", "samples_per_second": ".2f"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="of a diffusion model")
    parser.add_argument("samplers", nargs="*", default=DEFAULT)
    parser.add_argument("--num_samples", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path("runs/samplers"), help="folder of everything written")
    args = parser.parse_args()
    if args.checkpoint is None:
        print("nothing to sample: give a checkpoint")
        return
    lines = [["sampler", "steps", "fid", "KID", "precision", "recall", "samples/s"], ["---"] + ["---:"] * 6]
    for name in args.samplers or DEFAULT:
        sampler, steps = name.split(":")
        metrics = measure(args.checkpoint, sampler, steps, args.num_samples, args.output)
        lines.append([sampler, steps, *(f"{metrics[key]:{form}}" for key, form in COLUMNS.items())])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (args.output / "samplers.md").write_text(f"{table}\n")
    print(f"{table}\n\n{args.output / 'samplers.md'}")


def measure(checkpoint, sampler, steps, num_samples, output):
    """The numbers of a test, in a process of its own unless they are there."""
    stamp = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:8]
    folder = output / f"{stamp}_{sampler}_{steps}_{num_samples}"
    if found := sorted(folder.glob("**/results.json")):
        print(f"{sampler}, {steps} steps: taken from {found[-1]}")
    else:
        fid = [{"class_path": "FID", "init_args": {"num_samples": num_samples}}]
        command = [sys.executable, ROOT / "train.py", "test", "--ckpt_path", checkpoint]
        command += ["--model.sampler", sampler, "--model.sampling_steps", steps, "--trainer.limit_test_batches", 2]
        command += ["--trainer.callbacks", json.dumps(fid), "--trainer.default_root_dir", folder, "--name", "test"]
        subprocess.run(list(map(str, command)), check=True)
        found = sorted(folder.glob("**/results.json"))
    metrics = json.loads(found[-1].read_text())["metrics"]
    # distances without their extractor's name, which is the same throughout
    short = {
        key.split("_")[0]: v for key, v in metrics.items() if key.startswith(("fid_", "kid_")) and "std" not in key
    }
    return metrics | short


if __name__ == "__main__":
    main()
