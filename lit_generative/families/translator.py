"""Translators of source images to target images, judged by discriminators, whatever they learn from."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Adversarial
from lit_generative.images import from_symmetric, to_symmetric, to_uint8
from lit_generative.training.batches import unpack
from lit_generative.utils.precision import at_least_float32, for_weights


class Translator(Adversarial):
    """A model of batches ``(x, c)`` of target images and source images, both in [0, 1].

    A model sets ``image_shape``, ``source_channels`` and ``multiple``, and writes `translator` and the losses that
    `Adversarial` asks for.

    Args:
        lr: Learning rate of both Adams.
        beta1: Their first-moment decay.
        lr_decay_start: Fraction of the run after which the rates fall linearly to 0; 1 keeps them constant.
        adversarial: Arguments of `Adversarial`.
    """

    source_channels: int
    multiple: int  # of which the sides of what `translator` takes must be multiples
    learns_from_pairs = True

    def __init__(self, lr: float = 2e-4, beta1: float = 0.5, lr_decay_start: float = 0.5, **adversarial: Any) -> None:
        super().__init__(**adversarial)
        if not 0 <= lr_decay_start <= 1:
            raise UserError(f"lr_decay_start must be in [0, 1], got {lr_decay_start}")
        self.save_hyperparameters()
        self.lr, self.beta1, self.lr_decay_start = lr, beta1, lr_decay_start

    def default_optimizers(self) -> list[Optimizer]:
        networks, betas = (self.generator, self.discriminator), (self.beta1, 0.999)
        return [torch.optim.Adam(n.parameters(), self.lr, betas, fused=self.fused) for n in networks]

    @property
    def translator(self) -> nn.Module:
        """The network that `translate` uses: sources ``(B, C', H, W)`` to targets ``(B, C, H, W)``, both in [-1, 1]."""
        raise NotImplementedError

    @torch.no_grad()
    def translate(self, c: Tensor) -> Tensor:
        """Targets of source images ``(B, C', H, W)`` in [0, 1], ``(B, C, H, W)`` in [0, 1], drawn if there is noise.

        Of any size: sides are continued at the right and the bottom up to `multiple`, and cropped again.
        """
        self.require_sources(c)
        height, width = c.shape[-2:]
        c = for_weights(to_symmetric(c), self.translator)
        whole = pad(c, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        return from_symmetric(at_least_float32(self.translator(whole)[..., :height, :width]))

    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """`translate` the ``n`` source images ``c``.

        Raises:
            ValueError: There are none, or not ``n``.
        """
        if c is None or len(c) != n:
            raise UserError(f"{type(self).__name__} makes images of source images: give {n} of them as c")
        return self.translate(c)

    # -- Lightning ---------------------------------------------------------------------------------

    def require_fitting(self, data: Any) -> None:
        super().require_fitting(data)
        given, model, source = getattr(data, "source_channels", None), type(self).__name__, type(data).__name__
        pairs = self.learns_from_pairs
        if data is not None and (given is None or (pairs and not getattr(data, "paired", True))):
            wanted, remedy = ("pairs of", "PairedFolder") if pairs else ("source and target", "UnpairedFolders")
            raise UserError(f"{model} learns from {wanted} images, and {source} has none: choose {remedy}")
        if given not in (None, self.source_channels):
            raise UserError(
                f"{model} is built for source images of {self.source_channels} channels, but {source} gives {given}: "
                f"choose other data, or train with --model.source_channels {given}"
            )

    def take_batch(self, batch: Any, first: bool) -> tuple[Any, Any]:
        """As in any model; for predictions sources, and the names of their files or None, of pairs or sources alone."""
        if not self.trainer.predicting:
            return super().take_batch(batch, first)
        x, c = unpack(batch)
        source, names = (c, None) if isinstance(c, Tensor) and c.ndim == 4 else (x, c if isinstance(c, list) else None)
        self.require_sources(source)
        if first:
            self.require_range(source, "source images")
        return source.to(self.dtype), names

    def take_condition(self, c: Any, x: Tensor, first: bool) -> Tensor:
        """Source images of the size of their targets."""
        if c is None:
            raise UserError(f"{self._place()} learns from pairs (x, c) of target and source images, got targets only")
        self.require_floats(c, (self.source_channels, *x.shape[2:]), "source images")
        if len(c) != len(x):
            raise UserError(f"{self._place()} got {len(x)} target images and {len(c)} source images: give pairs")
        if first:
            self.require_range(c, "source images")
        return c.to(self.dtype)

    def require_sources(self, c: Any) -> None:
        """Raise an error unless ``c`` is float images ``(B, source_channels, H, W)`` of any size."""
        size = c.shape[2:] if isinstance(c, Tensor) and c.ndim == 4 else self.image_shape[1:]
        self.require_floats(c, (self.source_channels, *size), "source images")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """``translation`` of every source, uint8 ``(B, C, H, W)``, with the ``name`` of its file where it has one."""
        c, names = batch
        return {"translation": to_uint8(self.translate(c))} | ({} if names is None else {"name": names})
