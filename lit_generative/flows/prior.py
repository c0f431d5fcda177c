"""The distribution of a flow's z."""

import torch
from torch import Tensor, nn


class ClassNormal(nn.Module):
    """p(z|c) = N(m_c, diag s_c^2) of ``dims`` numbers, learned for each of ``classes``, N(0, I) at first.

    Without a label it is N(0, I). The prior of class-conditional Glow (Kingma & Dhariwal, 2018, arXiv:1807.03039).
    """

    def __init__(self, classes: int, dims: int) -> None:
        super().__init__()
        self.mean, self.log_scale = (nn.Parameter(torch.zeros(classes, dims)) for _ in range(2))

    def standardize(self, z: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
        """(z - m_c) / s_c ``(B, dims)``, and the log-determinant ``(B,)``; labels as vectors ``(B, classes)``."""
        log_scale = one_hot @ self.log_scale
        return (z - one_hot @ self.mean) * (-log_scale).exp(), -log_scale.sum(1)

    def place(self, eps: Tensor, one_hot: Tensor) -> Tensor:
        """m_c + s_c eps, the inverse of `standardize`."""
        return one_hot @ self.mean + (one_hot @ self.log_scale).exp() * eps
