"""Whether images of class-conditional models are of their class, by the LeNet of the data set.

    python benchmarks/labels.py CHECKPOINT... [--num_samples 1000] [--data_dir FOLDER]

Samples of every class in equal numbers; and, of a model that encodes, test images that are encoded with their label
and decoded with another.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule

import datamodules  # noqa: F401  # makes their classes known to `find_class`
from lit_generative.checkpoints.load import data_config, find_class, load_model, read_checkpoint
from lit_generative.images import from_uint8, to_uint8
from lit_generative.metrics.feature_extractors import extractor_name, load_extractor
from lit_generative.protocols import HasLatent


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--data_dir", help="folder of the test images; default: that of the training")
    args = parser.parse_args()
    if not args.checkpoints:
        print("nothing to classify: give checkpoints")
        return
    print("| model | samples of their class | re-labelled images: of the new class | of the old | real images |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for path in args.checkpoints:
        config, model = data_config(read_checkpoint(path)), load_model(path).eval()
        given = config["init_args"] | ({"data_dir": args.data_dir} if args.data_dir else {})
        data = find_class(config["class_path"], LightningDataModule)(**given)
        net = load_extractor(extractor_name(data.name))

        def share(x, c, net=net):
            """Of images in [0, 1], those that are taken for their class."""
            return f"{float((net.logits(net(to_uint8(x))).argmax(1) == c).double().mean()):.3f}"

        torch.manual_seed(0)
        labels = torch.arange(args.num_samples) % model.classes
        x, c = from_uint8(data.stored("test")[0][: args.num_samples]), data.labels_of("test")[: args.num_samples]
        cells, other = [share(model.sample(len(labels), labels), labels)], (c + 3) % model.classes
        if isinstance(model, HasLatent):
            images = model.decode(model.encode(x, c), other)
            cells += [share(images, other), share(images, c)]
        else:
            cells += ["-", "-"]
        print(f"| {type(model).__name__} | {' | '.join([*cells, share(x, c)])} |")


if __name__ == "__main__":
    main()
