"""A residual network for vectors, conditioned on the time step."""

from torch import Tensor, nn
from torch.nn import functional as F

from lit_generative.nn.mlp import zero_init
from lit_generative.nn.unet import TimeEmbedding


class TimeMLP(nn.Module):
    """Vectors ``(B, features)`` and time steps ``(B,)`` from 0, and labels if any, to ``(B, features)``, initially 0.

    Has ``depth`` residual blocks: layer norm, plus the embedded time, then two linear layers of ``width`` units.
    """

    def __init__(self, features: int, width: int, depth: int, labels: int = 0) -> None:
        super().__init__()
        self.time_embedding = TimeEmbedding(width, width)
        self.first, self.last = nn.Linear(features, width), nn.Linear(width, features)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth + 1))
        self.times = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.label_embedding = nn.Embedding(labels, width) if labels else None
        zero_init(self.last)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        h, embedding = self.first(x), self.time_embedding(t)
        if self.label_embedding is not None:
            embedding = embedding + self.label_embedding(c)
        embedding = F.silu(embedding)
        for norm, time, block in zip(self.norms, self.times, self.blocks, strict=False):
            h = h + block(norm(h) + time(embedding))
        return self.last(F.silu(self.norms[-1](h)))
