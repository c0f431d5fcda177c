r"""Image-to-image translation with conditional adversarial networks (Isola et al., 2017), arXiv:1611.07004.

With a source image c, its target x, noise z (dropout) and logits l of every patch, D = sigmoid(l):

    L_cGAN = E_c,x[log D(c, x)] + E_c,z[log(1 - D(c, G(c, z)))]                                     Eq. 1
    L_L1   = E_c,x,z[|x - G(c, z)|]                                                                 Eq. 3
    G*     = arg min_G max_D L_cGAN + lambda L_L1                                                   Eq. 4

G minimises -log D(c, G(c, z)) instead, and D half of its loss, to slow it down (Section 3.3).
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Batch
from lit_generative.families.translator import Translator
from lit_generative.images import to_symmetric
from lit_generative.nn.pix2pix import Norm, PatchDiscriminator, UNetGenerator, authors_names, require_patch


class Pix2Pix(Translator):
    """U-Net from source to target images, judged patch by patch.

    Args:
        image_shape: (C, H, W) of the target images; H and W are multiples of 2^num_downs.
        source_channels: Channels of the source images.
        num_downs: Halvings of the U-Net; 8 at 256 pixels.
        width: Channels of either network at the largest resolution.
        patch: Side of the patches that the discriminator judges: 1, 16, 34, 70, 142 or 286 pixels.
        norm: ``batch``, or ``instance``.
        test_norm: What batch norm does outside of training: the ``image``'s own statistics, which is the paper's test
            with batches of one, or the ``running`` ones.
        dropout: The noise.
        test_dropout: Whether there is noise outside of training, as in the paper.
        lambda_l1: Weight of the L1 term.
        lambda_gan: Weight of the generator's adversarial term; 0: L1 only.
        conditional: Whether the discriminator sees the source.
        translator: Arguments of `Translator` and `Adversarial`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 256, 256),
        source_channels: int = 3,
        num_downs: int = 8,
        width: int = 64,
        patch: Literal[1, 16, 34, 70, 142, 286] = 70,
        norm: Norm = "batch",
        test_norm: Literal["image", "running"] = "image",
        dropout: float = 0.5,
        test_dropout: bool = True,
        lambda_l1: float = 100.0,
        lambda_gan: float = 1.0,
        conditional: bool = True,
        **translator: Any,
    ) -> None:
        super().__init__(**translator)
        channels, h, w = image_shape
        if num_downs < 2 or min(width, source_channels) < 1:
            raise UserError(
                f"num_downs must be >= 2, width and source_channels >= 1; got {num_downs}, {width}, {source_channels}"
            )
        if h % 2**num_downs or w % 2**num_downs:
            most = math.gcd(h, w, 2**num_downs).bit_length() - 1
            raise UserError(
                f"images of {h}x{w} pixels can be halved {most} times, not num_downs={num_downs}: set fewer"
            )
        require_patch(patch, h, w)
        if not (0 <= dropout < 1 and min(lambda_l1, lambda_gan) >= 0):
            raise UserError(
                f"dropout must be in [0, 1), lambda_l1 and lambda_gan >= 0; got {dropout}, {lambda_l1}, {lambda_gan}"
            )
        self.image_shape, self.source_channels, self.num_downs = image_shape, source_channels, num_downs
        self.lambda_l1, self.lambda_gan, self.conditional = lambda_l1, lambda_gan, conditional
        self.multiple = 2**num_downs
        by_image = test_norm == "image"
        self.generator = UNetGenerator(
            source_channels, channels, num_downs, width, norm, dropout, test_dropout, by_image
        )
        seen = channels + (source_channels if conditional else 0)
        self.discriminator = PatchDiscriminator(seen, width, patch, norm)

    def convert_state_dict(self, state: dict[str, Tensor], file: str = "") -> dict[str, Tensor]:
        """The authors' generator and discriminator under our names."""
        ours = authors_names(self.num_downs)
        if "model.model.0.weight" in state:
            split = {name: name.rpartition(".") for name in state}
            return {f"generator.{ours.get(layer, layer)}.{p}": state[name] for name, (layer, _, p) in split.items()}
        if "model.0.weight" in state:
            return {f"discriminator.{name}": v for name, v in state.items()}
        return state

    # -- objective ---------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> Tensor:
        return self.generator(to_symmetric(batch[1]))

    def judge(self, c: Tensor, x: Tensor) -> Tensor:
        """Logits of every patch of ``x`` in [-1, 1], given the source ``c`` in [0, 1]; ``(B, 1, H', W')``."""
        return self.discriminator(torch.cat([to_symmetric(c), x], 1) if self.conditional else x)

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        x, c = batch
        real, made_up = self.judge(c, to_symmetric(x)), self.judge(c, fake)
        loss_real = binary_cross_entropy_with_logits(real, torch.ones_like(real))
        loss_fake = binary_cross_entropy_with_logits(made_up, torch.zeros_like(made_up))
        return {
            "loss_discriminator": (loss_real + loss_fake) / 2,
            "loss_real": loss_real,
            "loss_fake": loss_fake,
        }

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        x, c = batch
        made_up = self.judge(c, fake)
        loss_gan = binary_cross_entropy_with_logits(made_up, torch.ones_like(made_up))
        loss_l1 = (to_symmetric(x) - fake).abs().mean()  # the mean over pixels, as in the authors' code
        loss = self.lambda_gan * loss_gan + self.lambda_l1 * loss_l1
        return {"loss_generator": loss, "loss_gan": loss_gan, "loss_l1": loss_l1}

    # -- translation: `Translator.translate`, on the dropout's noise ---------------------------------

    @property
    def translator(self) -> nn.Module:
        return self.generator

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """The generator: sources ``(B, C', H, W)`` to targets, both in [-1, 1]."""
        size = self.image_shape[1:]
        return {"generator": (self.generator, (torch.zeros(2, self.source_channels, *size),))}
