"""Manual optimisation of two networks that play against each other, done once.

A batch is one turn. The discriminator (critic) moves first, on the generator's images without their graph; every
``n_critic``-th time the generator moves against it, with the same images. Neither touches the other's weights or
buffers. A model writes `generate`, `discriminator_loss`, `generator_loss` and its optimisers.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer, do_nothing_closure
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from lit_generative.images import from_symmetric, to_symmetric
from lit_generative.module import GenerativeModel

Batch = tuple[Tensor, Tensor]


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients through ``network``, and leave its parameters, their gradients and its buffers as they are."""
    learning = [p for p in network.parameters() if p.requires_grad]
    buffers = [(b, b.clone()) for b in network.buffers()]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


class Adversarial(GenerativeModel):
    """A model whose training is a game of ``generator`` and ``discriminator``.

    `configure_optimizers` gives the optimisers of the two in this order, and their schedules if any.
    ``trainer.global_step`` counts batches, whatever ``n_critic`` and ``accumulate`` are.

    Args:
        n_critic: Steps of the discriminator to one of the generator.
        accumulate: Batches whose gradients make one step; the last step of an epoch may have fewer.
        clip: Norm to which either network's gradients are clipped; 0: not at all.
    """

    generator: nn.Module
    discriminator: nn.Module

    def __init__(self, n_critic: int = 1, accumulate: int = 1, clip: float = 0.0) -> None:
        super().__init__()
        if min(n_critic, accumulate) < 1 or clip < 0:
            raise ValueError(f"n_critic and accumulate start at 1, clip at 0; got {n_critic}, {accumulate}, {clip}")
        self.automatic_optimization = False
        self.n_critic, self.accumulation, self.clip = n_critic, accumulate, clip
        self.discriminator_steps = self.generator_steps = 0
        self._waiting: list[Batch] = []  # batches behind the gradients of a step to come

    def setup(self, stage: str) -> None:
        super().setup(stage)
        strategy = self.trainer.strategy
        if stage == "fit" and isinstance(strategy, DDPStrategy):
            options = strategy._ddp_kwargs
            if options.get("static_graph") or not options.get("find_unused_parameters"):
                raise ValueError(
                    f"{type(self).__name__} moves one network at a time, which plain DDP takes for a fault: set "
                    "--trainer.strategy ddp_find_unused_parameters_true"
                )

    # -- what a model writes -----------------------------------------------------------------------

    def generate(self, batch: Batch) -> Tensor:
        """The generator's images for one batch."""
        raise NotImplementedError

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        """Scalars to log, of which ``loss_discriminator`` (or ``loss_critic``), the first, is minimised."""
        raise NotImplementedError

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        """Scalars to log, of which ``loss_generator``, the first, is minimised."""
        raise NotImplementedError

    def after_discriminator_step(self) -> None:
        """For what follows each of its steps, as the clipping of weights."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self._waiting = []  # a run that was stopped within a step leaves it

    # -- one turn ----------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        with one_step_a_batch(optimizers):
            self._play(batch, *optimizers)
        self._step_schedules("step")

    def _step_schedules(self, interval: str) -> None:
        schedules: list[Any] = [c.scheduler for c in self.trainer.lr_scheduler_configs if c.interval == interval]
        with warnings.catch_warnings():
            # torch warns until the first step of the generator, which n_critic delays
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for schedule in schedules:
                schedule.step()

    def _play(self, batch: Batch, optimizer_g: LightningOptimizer, optimizer_d: LightningOptimizer) -> None:
        self._waiting.append(batch)
        moves = (self.discriminator_steps + 1) % self.n_critic == 0  # the generator, after this discriminator step
        shares = moves and self.accumulation == 1  # its images serve both
        if shares:
            fake = self.generate(batch)
        else:
            with torch.no_grad(), frozen(self.generator):
                fake = self.generate(batch)
        if len(self._waiting) == 1:
            optimizer_d.zero_grad()
        self._backward(self.discriminator_loss(batch, fake.detach()), images=len(batch[0]))
        if len(self._waiting) < self.accumulation and not self.trainer.is_last_batch:
            return
        self._step(optimizer_d)
        self.discriminator_steps += 1
        self.after_discriminator_step()
        if moves:
            optimizer_g.zero_grad()
            with frozen(self.discriminator):
                for waiting in self._waiting:
                    fake = fake if shares else self.generate(waiting)
                    self._backward(self.generator_loss(waiting, fake))
            self._step(optimizer_g)
            self.generator_steps += 1
        self._waiting = []

    def _backward(self, losses: dict[str, Tensor], images: int = 0) -> None:
        self.manual_backward(next(iter(losses.values())))
        self.accumulate(losses, images)

    def _step(self, optimizer: LightningOptimizer) -> None:
        if len(self._waiting) > 1:  # the mean over what was accumulated
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad /= len(self._waiting)
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.clip:  # here float16 gradients are unscaled
            clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.clip)

    def on_train_epoch_end(self) -> None:
        self._step_schedules("epoch")

    # -- Lightning ---------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Lightning's first hook: say which of the model's options replaces what manual optimisation cannot honour."""
        for flag, unset, own in (
            ("gradient_clip_val", (None, 0), "clip"),
            ("accumulate_grad_batches", (1,), "accumulate"),
        ):
            value = getattr(self.trainer, flag)
            if value not in unset:
                raise MisconfigurationException(
                    f"{type(self).__name__} optimises two networks by itself, so that --trainer.{flag} cannot be "
                    f"honoured: remove it and set --model.{own} {value}"
                )
        return []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """A game has no loss to validate by; callbacks look at the samples."""

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["adversarial_steps"] = [self.discriminator_steps, self.generator_steps]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.discriminator_steps, self.generator_steps = checkpoint.get("adversarial_steps", [0, 0])


class GAN(Adversarial):
    """A game whose generator makes images in [-1, 1] of z ~ N(0, I); a model adds networks and losses."""

    latent: int

    def generate(self, batch: Batch) -> Tensor:
        return self.generator(torch.randn(len(batch[0]), self.latent, device=self.device))

    def decode(self, z: Tensor) -> Tensor:
        """Images of z ``(B, latent)``, ``(B, C, H, W)`` in [0, 1]."""
        return from_symmetric(self.generator(z).float())

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """Images of z ~ N(0, I), ``(n, C, H, W)`` in [0, 1]."""
        return self.decode(torch.randn(n, self.latent, device=self.device))

    @torch.no_grad()
    def interpolate(self, n: int, steps: int) -> Tensor:
        """Images along ``n`` arcs between two draws of z, ``(n * steps, C, H, W)`` in [0, 1]."""
        start, end = torch.randn(2, n, 1, self.latent, device=self.device)
        angle = torch.linspace(0, torch.pi / 2, steps, device=self.device)[:, None]
        z = angle.cos() * start + angle.sin() * end  # N(0, I) at every angle
        return self.decode(z.flatten(0, 1))

    def ood_scores(self, x: Tensor) -> dict[str, Tensor]:
        """How little the discriminator thinks of each image, ``(B,)``. Not a likelihood."""
        return {"discriminator": -self.discriminator(to_symmetric(x)).float()}


@contextmanager
def one_step_a_batch(optimizers: list[LightningOptimizer]) -> Iterator[None]:
    """Count one step of the Trainer in this block, where Lightning counts every optimiser's."""
    before, after = optimizers[0]._on_before_step, optimizers[0]._on_after_step
    for optimizer in optimizers:
        optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
    yield
    before()
    after()
