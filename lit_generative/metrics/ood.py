"""Scores that tell out-of-distribution images from those of training, and measures of how well they do.

All scores are higher for images that look more out of distribution. Nothing here is tuned on such images.
``log_prob`` is a log mass, or a bound on it, in nats ``(N,)``.
"""

import hashlib
import io
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, features
from torch import Generator, Tensor

from lit_generative.metrics.reference_statistics import content_hash
from lit_generative.utils.files import atomic_write
from lit_generative.utils.tasks import tracked


def negative_log_likelihood(log_prob: Tensor) -> Tensor:
    """-log p(x), nats ``(N,)``: a baseline that is known to fail (Nalisnick et al., 2019a)."""
    return -log_prob


def typicality(log_prob: Tensor, train_log_prob: Tensor) -> Tensor:
    """|-log p(x) - H|, H the mean of -log p over training images, nats ``(N,)`` (Nalisnick et al., 2019b, M = 1)."""
    return (log_prob - train_log_prob[train_log_prob.isfinite()].mean()).abs()


def input_complexity(log_prob: Tensor, length: Tensor) -> Tensor:
    """-log p(x) - L(x), nats ``(N,)``: L is a lossless code's length, see `code_length` (Serrà et al., 2020, Eq. 1)."""
    return -log_prob - length


def likelihood_ratio(log_prob: Tensor, background_log_prob: Tensor) -> Tensor:
    """log p_background(x) - log p(x), nats ``(N,)`` (the negative of Ren et al., 2019, Eq. 4)."""
    return background_log_prob - log_prob


CODES: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "WEBP": {"lossless": True, "quality": 100, "method": 6},
    "JPEG2000": {"irreversible": False},
}


def code_length(images: Tensor) -> Tensor:
    """The shortest lossless code (PNG, WebP, JPEG 2000) of each image uint8 ``(N, C, H, W)``, nats ``(N,)``."""

    def shortest(image: np.ndarray) -> int:  # in bytes
        sizes = []
        for code, options in CODES.items():
            file = io.BytesIO()
            Image.fromarray(image).save(file, code, **options)
            sizes.append(len(file.getvalue()))
        return min(sizes)

    arrays = images.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # the encoders let other threads run
        each = threads.map(shortest, arrays)
        lengths = [next(each) for _ in tracked(arrays, "image")]
    return torch.tensor(lengths, dtype=torch.float64) * 8 * math.log(2)


def stored_code_length(images: Tensor, folder: Path) -> Tensor:
    """`code_length`, read from a file in ``folder`` where that of the same images is there, else written to it."""
    key = {"images": content_hash(images), "codes": CODES, "versions": encoder_versions()}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"code-lengths-{digest}.npy"
    if path.is_file():
        with suppress(ValueError, OSError, EOFError):  # a damaged file is written anew
            stored = torch.from_numpy(np.load(path, allow_pickle=False))
            if stored.shape == (len(images),):
                return stored
    lengths = code_length(images)
    try:
        with atomic_write(path, shared=True) as file:
            np.save(file, lengths.numpy())
    except OSError as error:
        rank_zero_warn(f"code lengths cannot be written to {folder} ({error}): choose another cache_dir")
    return lengths


def encoder_versions() -> dict[str, str | None]:
    """Versions of the libraries that encode images."""
    libraries = {"zlib": "zlib", "webp": "webp", "jpg_2000": "openjpeg"}
    return {"pillow": PIL.__version__} | {name: features.version(code) for code, name in libraries.items()}


def scores(
    log_prob: Tensor, train_log_prob: Tensor, length: Tensor, background_log_prob: Tensor | None = None
) -> dict[str, Tensor]:
    """All scores above by name, each ``(N,)``; ``ratio`` only with a background model."""
    named = {
        "likelihood": negative_log_likelihood(log_prob),
        "typicality": typicality(log_prob, train_log_prob),
        "complexity": input_complexity(log_prob, length),
    }
    if background_log_prob is not None:
        named["ratio"] = likelihood_ratio(log_prob, background_log_prob)
    return named


def spread(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores of a model as columns: ``(N,)`` as they are, ``(N, K)`` as ``name@0``, ``name@1``, ..."""
    columns: dict[str, Tensor] = {}
    for name, values in scores.items():
        several = {f"{name}@{k}": column for k, column in enumerate(values.T)} if values.ndim > 1 else {name: values}
        columns |= several
    return columns


def gathered(sets: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Join the columns that `spread` made of one score: their mean z-score, standardised by the set ``train``.

    Graham et al. (2023), Section 3.3, join errors at several scales in this way. Scores are given by set and name.
    """
    train, joined = sets["train"], {}
    for set_name, columns in sets.items():
        groups: dict[str, list[Tensor]] = {}
        for name, values in columns.items():
            scale, at, _ = name.partition("@")
            groups.setdefault(scale, []).append(
                (values - train[name].mean()) / train[name].std().clamp(min=1e-12) if at else values
            )
        joined[set_name] = {name: torch.stack(parts).mean(0) for name, parts in groups.items()}
    return joined


def simple_images(test: Tensor, seed: int) -> dict[str, Tensor]:
    """Synthetic sets of the size of ``test``, uint8 ``(N, C, H, W)``: noise, constants, flipped and inverted."""
    levels = torch.arange(len(test)) * 256 // len(test)
    noise = torch.randint(0, 256, test.shape, dtype=torch.uint8, generator=Generator().manual_seed(seed))
    return {
        "uniform": noise,
        "constant": levels.to(torch.uint8).view(-1, 1, 1, 1).expand_as(test).contiguous(),
        "hflip": test.flip(-1),
        "vflip": test.flip(-2),
        "inverted": 255 - test,
    }


def detection(inside: Tensor, outside: Tensor, resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, ...]]:
    """How well a score separates ``outside`` images ``(M,)`` from ``inside`` images ``(N,)``.

    ``auroc``; ``aupr``, the average precision with ``outside`` as the positive class, which depends on M / (M + N);
    ``fpr95``, the share of ``outside`` accepted at the lowest threshold that accepts 95 % of ``inside``. Each as
    (value, lower, upper) with a 95 % interval over bootstrap resamples of both sets. NaN counts as the
    wrong answer: +inf for an inside image, -inf for an outside image.
    """
    inside, outside = inside.double().nan_to_num(math.inf, math.inf, -math.inf), outside.double()
    outside = outside.nan_to_num(-math.inf, math.inf, -math.inf)
    values, where = torch.cat([inside, outside]).unique(return_inverse=True)
    counts = [torch.bincount(w, minlength=len(values)).double() for w in where.split([len(inside), len(outside)])]
    measured = _measures(*counts)
    generator, draws = Generator().manual_seed(seed), []
    for rows in torch.ones(resamples).split(50):  # bounds the memory
        pair = [_resample(count, len(rows), generator) for count in counts]
        draws.append(_measures(*pair))
    bounds = torch.cat(draws).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 0)
    return {
        name: (float(measured[..., i]), *bounds[:, i].tolist()) for i, name in enumerate(("auroc", "aupr", "fpr95"))
    }


def _resample(counts: Tensor, n: int, generator: Generator) -> Tensor:
    """``n`` bootstrap resamples of the images: counts ``(U,)`` to ``(n, U)``."""
    total = int(counts.sum())
    drawn = torch.multinomial(counts, n * total, replacement=True, generator=generator).view(n, total)
    return torch.zeros(n, len(counts), dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def _measures(inside: Tensor, outside: Tensor) -> Tensor:
    """AUROC, average precision and FPR at 95 % TPR from counts of images by ascending score ``(..., U)``."""
    inside_below, outside_below = inside.cumsum(-1), outside.cumsum(-1)  # at or below each score
    n_inside, n_outside = inside_below[..., -1:], outside_below[..., -1:]
    auroc = (outside * (inside_below - inside / 2)).sum(-1) / (n_inside * n_outside)[..., 0]
    found, wrong = n_outside - outside_below + outside, n_inside - inside_below + inside  # at or above
    precision = (outside * found / (found + wrong).clamp(min=1)).sum(-1) / n_outside[..., 0]
    threshold = (inside_below < 0.95 * n_inside).sum(-1, keepdim=True)
    fpr95 = (outside_below / n_outside).gather(-1, threshold)[..., 0]
    return torch.stack([auroc, precision, fpr95], -1)
