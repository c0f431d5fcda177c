"""What measures of memorisation say when a known share of samples are copies of training images.

    python benchmarks/memorization.py --data FashionMNIST [--data_dir FOLDER]

Samples are half of the test images, of which 0, 1, 10 and 100 % are replaced by training images; distances are
compared with those of the other half, in the features of the data set's LeNet.
"""

import argparse

import torch

import datamodules
from lit_generative.metrics.feature_extractors import extractor_name, load_extractor
from lit_generative.metrics.frechet import Gaussian, frechet_distance
from lit_generative.metrics.memorization import authentic_share, data_copying


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="MNIST or FashionMNIST")
    parser.add_argument("--data_dir")
    args = parser.parse_args()
    if args.data is None:
        print("nothing to measure: give --data")
        return
    data = getattr(datamodules, args.data)(**({"data_dir": args.data_dir} if args.data_dir else {}))
    net = load_extractor(extractor_name(args.data))
    train, test = (
        torch.cat([net(batch) for batch in data.convert(data.stored(split)[0]).split(1000)])
        for split in ("train", "test")
    )
    generator = torch.Generator().manual_seed(0)
    samples, held_out = test[torch.randperm(len(test), generator=generator)].chunk(2)
    print("| copies | authentic | C_T | gap |\n| ---: | ---: | ---: | ---: |")
    for share in (0.0, 0.01, 0.1, 1.0):
        copies = train[torch.randperm(len(train), generator=generator)[: round(share * len(samples))]]
        planted = torch.cat([copies, samples[len(copies) :]])
        own, of_train, of_test = map(Gaussian.of, (planted, train[: len(held_out)], held_out))
        gap = frechet_distance(of_test, own) - frechet_distance(of_train, own)
        copying = data_copying(planted, held_out, train)
        print(f"| {share:.0%} | {authentic_share(planted, train):.3f} | {copying:.2f} | {gap:.3f} |")


if __name__ == "__main__":
    main()
