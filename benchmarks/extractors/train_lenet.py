"""Train the classifiers whose features judge grey images: ``python benchmarks/extractors/train_lenet.py MNIST``.

Writes ``lit_generative/metrics/assets/lenet_<data>.safetensors``. The last epoch's weights are kept: the test images
choose nothing, they only give the accuracy that is printed.
"""

import argparse
import time

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, pad

import datamodules
from lit_generative.metrics.feature_extractors import ASSETS, LeNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=["MNIST", "FashionMNIST", "KMNIST"])
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    data = getattr(datamodules, args.data)(batch_size=128, val_size=0, random_flip=args.data == "FashionMNIST")
    data.prepare_data()
    data.setup()
    loader, net = data.train_dataloader(), LeNet()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, args.epochs * len(loader))
    start = time.perf_counter()
    for epoch in range(args.epochs):
        loader.set_epoch(epoch)
        for x, c in loader:
            dy, dx = torch.randint(0, 5, (2,)).tolist()
            features = net(pad(x, (2, 2, 2, 2))[..., dy : dy + 28, dx : dx + 28])  # shifted by up to two pixels
            features = torch.nn.functional.dropout(features, 0.3)
            loss = cross_entropy(net.logits(features), c, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch}: accuracy {accuracy(net, data):.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    name = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist", "KMNIST": "kmnist"}[args.data]
    save_file(net.state_dict(), ASSETS / f"lenet_{name}.safetensors")


@torch.no_grad()
def accuracy(net: LeNet, data: datamodules.ImageData) -> float:
    hits = [net.logits(net(x)).argmax(1) == c for x, c in data.test_dataloader()]
    return torch.cat(hits).float().mean().item()


if __name__ == "__main__":
    main()
