"""Density of states estimation (Morningstar et al., 2021, "DoSE", AISTATS), arXiv:2006.09273.

    score(x) = -sum_j log q_j(T_j(x)),   q_j: a kernel density of the statistic T_j over images of the training's kind

An image is typical if every statistic of it, such as likelihood, code length and KL, has a value that is common
among images which the model was not trained on: too likely is as suspicious as too unlikely.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def log_kernel_density(values: Tensor, sample: Tensor) -> Tensor:
    """log of a Gaussian kernel density of ``sample`` ``(n,)`` at ``values`` ``(N,)``, float64 ``(N,)``.

    The bandwidth is Scott's, the sample's deviation times n^(-1/5). Values that are not finite get -inf.
    """
    values, sample = values.double(), sample.double()
    sample = sample[sample.isfinite()]
    bandwidth = (sample.std() * len(sample) ** -0.2).clamp(min=1e-12)
    distances = (values[:, None] - sample) / bandwidth
    log_density = (-0.5 * distances.square()).logsumexp(1) - (len(sample) * bandwidth * math.sqrt(2 * math.pi)).log()
    return log_density.where(values.isfinite(), -torch.inf)


def density_of_states(statistics: Mapping[str, Tensor], held_out: Mapping[str, Tensor]) -> Tensor:
    """The score of images whose statistics ``(N,)`` are given by name, float64 ``(N,)``, higher for less typical ones.

    Args:
        statistics: Numbers of the images that are scored.
        held_out: The same numbers ``(n,)`` of images that the model was not trained on, n >= 2.
    """
    each = [log_kernel_density(statistics[name], held_out[name]) for name in held_out]
    return -torch.stack(each).sum(0)


def add_density_of_states(scores: Mapping[str, dict[str, Tensor]]) -> None:
    """Add the score ``dose`` to every set's, where images ``held_out`` have two others or more.

    Typicality is left out: it is a function of the likelihood, which is there.
    """
    known = {name: values for name, values in scores.get("held_out", {}).items() if name != "typicality"}
    if len(known) > 1:
        for own in scores.values():
            own["dose"] = density_of_states(own, known)
