"""A residual network of vectors that knows the time step."""

from torch import Tensor, nn
from torch.nn import functional as F

from lit_generative.nn.mlp import zero
from lit_generative.nn.unet import TimeEmbedding


class TimeMLP(nn.Module):
    """Vectors ``(B, features)`` and time steps ``(B,)`` from 0 to ``(B, features)``, zeros at first.

    ``depth`` times a layer norm and two layers of ``width`` units, the embedded time added to the norm, around which
    there is a way.
    """

    def __init__(self, features: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embedding = TimeEmbedding(width, width)
        self.first, self.last = nn.Linear(features, width), nn.Linear(width, features)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth + 1))
        self.times = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        zero(self.last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, embedding = self.first(x), F.silu(self.time_embedding(t))
        for norm, time, block in zip(self.norms, self.times, self.blocks, strict=False):
            h = h + block(norm(h) + time(embedding))
        return self.last(F.silu(self.norms[-1](h)))
