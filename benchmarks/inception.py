"""Images/s of Inception-v3's features: ours (batch norm folded, channels last) against torch-fidelity's, same weights.

    python benchmarks/inception.py [--batch 16] [--rounds 5] [--threads 2]

The weights are random: neither speed nor the equality of the features depends on them.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from lit_generative.metrics.feature_extractors import Inception


class Fresh(FeatureExtractorInceptionV3):
    def load_state_dict(self, state_dict):
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({}, path)
        theirs = Fresh("theirs", ["2048"], feature_extractor_weights_path=str(path))
        torch.save(theirs.state_dict(), path)
        ours = Inception(str(path))
    x = torch.randint(0, 256, (args.batch, 3, 32, 32), dtype=torch.uint8)
    expected = theirs(x)[0]
    print(f"largest difference of features, relative: {(ours(x) - expected).abs().max() / expected.abs().max():.1e}")
    times = {"torch-fidelity": [], "ours": []}
    for _ in range(args.rounds):
        for name, net in (("torch-fidelity", theirs), ("ours", ours)):
            start = time.perf_counter()
            net(x)
            times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        speed = args.batch / statistics.median(seconds)
        ratio = statistics.median(a / b for a, b in zip(times["torch-fidelity"], seconds, strict=True))
        print(f"{name:<16}{speed:8.1f} images/s{ratio:8.2f}x")


if __name__ == "__main__":
    main()
