"""Feature extractors of the Fréchet distance and other metrics: modules from uint8 images to feature vectors.

An extractor maps uint8 ``(B, C, H, W)`` to float32 ``(B, features)``. It may have a ``name`` (default: that of its
class), which is part of the metrics' names, and ``preparation``, which says how it prepares images.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.transforms.v2.functional import resize

from lit_generative.errors import UserError
from lit_generative.utils.precision import exact

ASSETS = Path(__file__).parent / "assets"


class LeNet(nn.Module):
    """A small classifier of 28x28 grey images (after LeCun et al., 1998), whose last hidden layer gives 128 features.

    Those that come with the package (``benchmarks/extractors/train_lenet.py``) are right on 99.60 % of MNIST's and
    92.51 % of Fashion-MNIST's test images.

    Args:
        weights: A safetensors file; None: random weights.
    """

    preparation = "antialiased bilinear to 28x28 where the size differs"

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        widths = (1, 32, 48, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.hidden = nn.Linear(64 * 3 * 3, 128)
        self.logits = nn.Linear(128, 10)
        if weights is not None:
            self.name = weights.stem
            self.load_state_dict(load_file(weights))
            self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, 128)`` of uint8 ``(B, 1, H, W)``."""
        if x.shape[1] != 1:
            raise UserError(f"LeNet needs grey images, got {x.shape[1]} channels: choose extractor inception")
        if x.shape[-2:] != (28, 28):
            x = resize(x, [28, 28], antialias=True)
        x = x.float() / 255  # (B, 1, 28, 28)
        for conv in self.convs:
            x = max_pool2d(relu(conv(x)), 2)
        return relu(self.hidden(x.flatten(1)))


class Inception(nn.Module):
    """torch-fidelity's Inception-v3, the network of FID (Heusel et al., 2017), with batch norm folded: 2048 features.

    Args:
        weights_path: Its weights as torch-fidelity publishes them; None: downloaded once to torch's hub folder.

    Raises:
        ValueError: The weights cannot be downloaded or read; the message has the remedy.
    """

    name = "inception"
    preparation = "TensorFlow 1's bilinear to 299x299, grey repeated"

    def __init__(self, weights_path: str | None = None) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = Path(weights_path) if weights_path else _download_inception()
        try:
            # torch-fidelity unpickles any file: give it only one that is safe
            torch.load(path, weights_only=True)
            net = FeatureExtractorInceptionV3(self.name, ["2048"], feature_extractor_weights_path=str(path))
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{path} does not have the weights of torch-fidelity's Inception-v3 ({reason}): give the file "
                f"{_inception_url().rsplit('/')[-1]} as weights_path"
            ) from error
        for module in list(net.modules()):
            if hasattr(module, "conv") and hasattr(
                module, "bn"
            ):  # BasicConv2d; the next line makes it 1.8 times as fast
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
        self.net = net.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, 2048)`` of uint8 ``(B, 1 or 3, H, W)``."""
        return self.net(x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))[0]


def _inception_url() -> str:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3


def _download_inception() -> Path:
    url = _inception_url()
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-")[-1], progress=False)
        except Exception as error:
            raise UserError(
                f"the weights of Inception-v3 could not be downloaded ({error}): get {url} elsewhere and give its path "
                f"as weights_path, or choose an extractor that comes with this package ({', '.join(shipped())})"
            ) from error
    return path


def shipped() -> list[str]:
    """Names of the extractors that come with the package."""
    return sorted(path.stem for path in ASSETS.glob("*.safetensors"))


def extractor_name(data: str) -> str:
    """The extractor of a data set of that name: its own if the package has one, else ``inception``."""
    own = "lenet_" + re.sub("(?<=[a-z])(?=[A-Z])", "_", data).lower()
    return own if own in shipped() else "inception"


def load_extractor(name: str, weights_path: str | None = None) -> nn.Module:
    """The extractor ``inception`` or one of :func:`shipped`, frozen, on the CPU.

    Raises:
        ValueError: There is none of that name, or its weights cannot be downloaded or read.
    """
    if name == "inception":
        return Inception(weights_path)
    if name not in shipped():
        raise UserError(f"there is no extractor {name}: choose inception, {', '.join(shipped())}, or a module's class")
    return LeNet(ASSETS / f"{name}.safetensors")


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No autocast and no TensorFloat-32: features must not depend on a run's precision."""
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            cudnn.flags(True, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def fingerprint(net: nn.Module, images: Tensor) -> str:
    """A hash of an extractor: its class, its weights, and its features of some images."""
    digest = hashlib.sha256(f"{type(net).__module__}.{type(net).__qualname__}".encode())
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    with exact_float32(device):
        seen = net(images.to(device))
    # features depend on options that are not among the weights; rounded, since the last digits depend on the machine
    coarse = (exact(seen).cpu() / exact(seen).abs().max().clamp(min=1e-30).cpu()).round(decimals=3)
    for name, value in {**net.state_dict(), "seen": coarse, "scale": seen.abs().max().log2().round()}.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
