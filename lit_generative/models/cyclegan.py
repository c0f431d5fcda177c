r"""Unpaired image-to-image translation with cycle-consistent adversarial networks (Zhu et al., 2017), arXiv:1703.10593.

With sources c and targets x that are not pairs, translators G: c -> x and F: x -> c, discriminators D_x and D_c:

    L_GAN(G, D_x) = E_x[(D_x(x) - 1)^2] + E_c[D_x(G(c))^2]                 least squares, Section 4
    L_cyc(G, F)   = E_c[|F(G(c)) - c|] + E_x[|G(F(x)) - x|]                Eq. 2
    L_identity    = E_x[|G(x) - x|] + E_c[|F(c) - c|]                      Section 5.2
    L             = L_GAN(G, D_x) + L_GAN(F, D_c) + lambda L_cyc           Eq. 3

The translators minimise E_c[(D_x(G(c)) - 1)^2] instead, the discriminators half of their loss, on translations out of
the last 50 (`Pool`; Shrivastava et al., 2017).
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_generative.errors import UserError
from lit_generative.families.adversarial import Batch
from lit_generative.families.translator import Translator
from lit_generative.images import to_symmetric
from lit_generative.nn.cyclegan import ResNetGenerator
from lit_generative.nn.pix2pix import PatchDiscriminator, require_patch


class Pool:
    """Up to ``size`` earlier images; 0: none.

    The first images are kept and given back. Of later ones, half are given back as they are; the others take the place
    of images of the pool, which are given back instead.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: Tensor | None = None  # (n, C, H, W)

    def exchange(self, new: Tensor) -> Tensor:
        """As many images as ``new`` ``(B, C, H, W)``."""
        given = []
        for image in new.split(1) if self.size else ():
            if self.images is None or len(self.images) < self.size:
                self.images = image if self.images is None else torch.cat([self.images, image])
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(self.size, ()))
                image, self.images[place] = self.images[place][None].clone(), image[0]
            given.append(image)
        return torch.cat(given) if given else new


class CycleGAN(Translator):
    """Two ResNets that translate between two sets of images, each judged patch by patch.

    Args:
        image_shape: (C, H, W) of the images of both sides.
        width: Channels of either network at the largest resolution.
        blocks: Residual blocks of a translator; the authors take 6 at 128 pixels and 9 at 256.
        patch: Side of the patches that the discriminators judge: 1, 16, 34, 70, 142 or 286 pixels.
        lambda_cycle: Weight of the cycle's loss.
        lambda_identity: Weight of the identity's loss, relative to that of the cycle's.
        pool: Earlier translations of either side that its discriminator is shown, in each process.
        translates: What `translate` makes: targets of sources, as in the data that were trained on, or, for data of the
            other direction, sources of targets.
        translator: Arguments of `Translator` and `Adversarial`.
    """

    generator: nn.ModuleDict
    discriminator: nn.ModuleDict
    multiple = 4
    learns_from_pairs = False

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 256, 256),
        width: int = 64,
        blocks: int = 9,
        patch: Literal[1, 16, 34, 70, 142, 286] = 70,
        lambda_cycle: float = 10.0,
        lambda_identity: float = 0.5,
        pool: int = 50,
        translates: Literal["to_targets", "to_sources"] = "to_targets",
        **translator: Any,
    ) -> None:
        super().__init__(**translator)
        channels, h, w = image_shape
        if min(width, blocks) < 1 or pool < 0 or min(lambda_cycle, lambda_identity) < 0:
            raise UserError(
                "width and blocks must be >= 1, pool, lambda_cycle and lambda_identity >= 0; got "
                f"{width}, {blocks}, {pool}, {lambda_cycle}, {lambda_identity}"
            )
        if h % 4 or w % 4 or min(h, w) < 8:
            raise UserError(f"the sides of images must be multiples of 4, and at least 8, got {h}x{w}")
        require_patch(patch, h, w)
        self.image_shape, self.source_channels, self.translates = image_shape, channels, translates
        self.lambda_cycle, self.lambda_identity = lambda_cycle, lambda_identity
        self.generator = nn.ModuleDict({of: ResNetGenerator(channels, channels, width, blocks) for of in "GF"})
        self.discriminator = nn.ModuleDict(
            {of: PatchDiscriminator(channels, width, patch, "instance") for of in ("target", "source")}
        )
        self.pools = [Pool(pool), Pool(pool)]  # of targets, of sources

    # -- objective ---------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> Tensor:
        """G(c) and below it F(x), in [-1, 1], ``(2 B, C, H, W)``."""
        x, c = map(to_symmetric, batch)
        return torch.cat([self.generator["G"](c), self.generator["F"](x)])

    def shown(self, fake: Tensor) -> Tensor:
        """Translations of the pools in place of every other one on average."""
        return torch.cat([pool.exchange(images) for pool, images in zip(self.pools, fake.chunk(2), strict=True)])

    def judge(self, targets: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """What the discriminators give for every patch of images in [-1, 1], twice ``(B, 1, H', W')``; real: 1."""
        return self.discriminator["target"](targets), self.discriminator["source"](sources)

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        real = [(d - 1).square().mean() for d in self.judge(*map(to_symmetric, batch))]
        made_up = [d.square().mean() for d in self.judge(*fake.chunk(2))]
        loss_target, loss_source = ((r + f) / 2 for r, f in zip(real, made_up, strict=True))
        return {"loss_discriminator": loss_target + loss_source, "loss_target": loss_target, "loss_source": loss_source}

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        x, c = map(to_symmetric, batch)
        G, F = self.generator["G"], self.generator["F"]
        made_x, made_c = fake.chunk(2)
        loss_gan = torch.stack([(d - 1).square().mean() for d in self.judge(made_x, made_c)]).sum()
        loss_cycle = (F(made_x) - c).abs().mean() + (G(made_c) - x).abs().mean()
        terms = {"loss_gan": loss_gan, "loss_cycle": loss_cycle}
        loss = loss_gan + self.lambda_cycle * loss_cycle
        if self.lambda_identity:
            terms["loss_identity"] = (G(x) - x).abs().mean() + (F(c) - c).abs().mean()
            loss = loss + self.lambda_cycle * self.lambda_identity * terms["loss_identity"]
        return {"loss_generator": loss, **terms}

    # -- translation -------------------------------------------------------------------------------

    @property
    def translator(self) -> nn.Module:
        return self.generator["G" if self.translates == "to_targets" else "F"]

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """Both translators, of images in [-1, 1]."""
        images = (torch.zeros(2, *self.image_shape),)
        return {"to_targets": (self.generator["G"], images), "to_sources": (self.generator["F"], images)}

    def convert_state_dict(self, state: dict[str, Tensor], file: str = "") -> dict[str, Tensor]:
        """One of the authors' networks under our names, by the end of its file's name.

        ``G_A`` (or ``G``, of their published models) translates sources to targets, and ``G_B`` back; ``D_A`` judges
        targets, ``D_B`` sources.
        """
        if not all(name.startswith("model.") for name in state):
            return state
        networks = {"G_A": "generator.G", "G_B": "generator.F", "D_A": "discriminator.target"}
        networks |= {"D_B": "discriminator.source", "G": "generator.G"}
        ours = next((ours for end, ours in networks.items() if file.endswith(f"net_{end}")), "generator.G")
        # of instance norm, in files of before PyTorch 0.4, and never used
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        return {f"{ours}.{name}": v for name, v in state.items() if not name.endswith(statistics)}

    # -- Lightning ---------------------------------------------------------------------------------

    def training_state(self) -> dict[str, Any]:
        state = super().training_state()
        pools = [pool.images for pool in self.pools if pool.images is not None]
        if pools:  # both, as full in all processes
            state["pools"] = [self.all_gather(images) if self.processes > 1 else images[None] for images in pools]
        return state

    def start_training(self, state: Mapping[str, Any]) -> None:
        super().start_training(state)
        pools = state.get("pools", ())
        for pool, saved in zip(self.pools, pools or (None, None), strict=True):
            known = saved is not None and len(saved) == self.processes
            pool.images = saved[self.global_rank].to(self.device) if known else None
