"""Manual optimisation of two networks that are trained against each other, done once.

For every batch the discriminator (critic) takes a step, on the generator's images without their graph; every
``n_critic``-th time the generator takes one too, on the same images. Neither touches the other's weights or buffers. A
model writes `generate`, `discriminator_loss`, `generator_loss` and `default_optimizers`.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer, do_nothing_closure
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_generative.errors import UserError
from lit_generative.generative_model import GenerativeModel

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
    """A model whose ``generator`` and ``discriminator`` are trained against each other.

    `default_optimizers` gives the optimisers of the two in this order.
    ``trainer.global_step`` counts batches, whatever ``n_critic`` and ``log_terms`` are; a step that float16's scaler
    skips counts too.

    Args:
        n_critic: Steps of the discriminator to one of the generator.
        accumulate_grad_batches: Batches, of equal size, whose gradients make one step; the last step of an epoch may
            have fewer.
        clip: Norm to which either network's gradients are clipped; 0: not at all.
        rest: Arguments of the other class, of a model with two parents (``class M(Adversarial, VAE)``).
    """

    generator: nn.Module
    discriminator: nn.Module
    monitor: str | None = None  # there is no loss to choose by
    compiled_functions = ("generate", "discriminator_loss", "generator_loss")

    def __init__(self, n_critic: int = 1, accumulate_grad_batches: int = 1, clip: float = 0.0, **rest: Any) -> None:
        super().__init__(**rest)
        if min(n_critic, accumulate_grad_batches) < 1 or clip < 0:
            raise UserError(
                "n_critic and accumulate_grad_batches must be >= 1, clip >= 0; "
                f"got {n_critic}, {accumulate_grad_batches}, {clip}"
            )
        self.automatic_optimization = False
        self.n_critic, self.batches_per_step, self.clip = n_critic, accumulate_grad_batches, clip
        self.discriminator_steps = self.generator_steps = self.images_seen = 0
        self._waiting: list[Batch] = []  # batches whose gradients wait for the rest of a step

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.require_float32("float16 loses small gradients", instead_of=("16-true",))
            self.require_unused_parameters("trains one network at a time")

    @property
    def fused(self) -> bool:
        """Whether optimisers may be fused, which is faster: scaled gradients cannot be clipped for those."""
        return not self.clip

    @property
    def step_begun(self) -> bool:
        """Whether there are gradients of a step that more batches will complete."""
        return bool(self._waiting)

    def compile(self, mode: str = "default") -> None:
        """As `Compiles.compile`; not by CUDA graphs, which reuse the memory of the generator's images too early."""
        if "triton.cudagraphs" in self.compile_options(mode):
            raise UserError(f"{type(self).__name__} cannot be compiled by CUDA graphs ({mode}): choose default")
        super().compile(mode)

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

    def shown(self, fake: Tensor) -> Tensor:
        """What the discriminator sees in place of the generator's images ``fake``, such as earlier ones."""
        return fake

    def after_discriminator_step(self) -> None:
        """For what follows each of its steps, as the clipping of weights."""

    # -- one step ---------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        batch = batch[0], self.hide_labels(batch[1])
        with one_step_a_batch(optimizers):
            self._train_on(batch, *optimizers)
        self.images_seen += len(batch[0]) * self.trainer.world_size
        self._step_schedules("step", self.trainer.global_step)

    def counters(self) -> dict[str, int]:
        own = {"generator_steps": self.generator_steps, "images_seen": self.images_seen}
        return super().counters() | own

    def on_train_epoch_end(self) -> None:
        if self.trainer.is_last_batch:  # else the run ends within the epoch
            self._step_schedules("epoch", self.current_epoch + 1)

    def _step_schedules(self, interval: str, now: int) -> None:
        configs = [c for c in self.trainer.lr_scheduler_configs if c.interval == interval and now % c.frequency == 0]
        with warnings.catch_warnings():
            # torch warns until the first step of the generator, which n_critic delays
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for config in configs:
                schedule: Any = config.scheduler
                schedule.step()

    def _train_on(self, batch: Batch, optimizer_g: LightningOptimizer, optimizer_d: LightningOptimizer) -> None:
        self._waiting.append(batch)
        both = (self.discriminator_steps + 1) % self.n_critic == 0  # a step of the generator follows
        shares = both and self.batches_per_step == 1  # its images serve both
        if shares:
            fake = self.generate(batch)
        else:
            with torch.no_grad(), frozen(self.generator):
                fake = self.generate(batch)
        if len(self._waiting) == 1:
            optimizer_d.zero_grad()
        complete = len(self._waiting) == self.batches_per_step or self.trainer.is_last_batch
        losses = self.discriminator_loss(batch, self.shown(fake.detach()))
        self._backward(losses, complete, images=len(batch[0]))
        if not complete:
            return
        self._step(optimizer_d)
        self.discriminator_steps += 1
        self.after_discriminator_step()
        if both:
            optimizer_g.zero_grad()
            with frozen(self.discriminator):
                for i, waiting in enumerate(self._waiting, 1):
                    fake = fake if shares else self.generate(waiting)
                    self._backward(self.generator_loss(waiting, fake), complete=i == len(self._waiting))
            self._step(optimizer_g)
            self.generator_steps += 1
        self._waiting = []

    def _backward(self, losses: dict[str, Tensor], complete: bool, images: int = 0) -> None:
        strategy = self.trainer.strategy
        alone = not complete and isinstance(strategy, ParallelStrategy)
        with strategy.block_backward_sync() if alone else nullcontext():  # type: ignore[attr-defined]
            # only the last one sums over processes
            self.manual_backward(next(iter(losses.values())))
        self.log_terms(losses, images)

    def _step(self, optimizer: LightningOptimizer) -> None:
        if len(self._waiting) > 1:  # the mean over what was accumulated
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad /= len(self._waiting)
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.clip:  # Lightning refuses to where float16 gradients are scaled still, as for fused optimisers
            self.clip_gradients(optimizer, self.clip, "norm")

    # -- Lightning ---------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Lightning's first hook: say which of the model's options replaces what manual optimisation cannot honour."""
        for flag, unset, own in (
            ("gradient_clip_val", (None, 0), "clip"),
            ("accumulate_grad_batches", (1,), "accumulate_grad_batches"),
        ):
            value = getattr(self.trainer, flag)
            if value not in unset and self.trainer.state.fn == TrainerFn.FITTING:
                raise MisconfigurationException(
                    f"{type(self).__name__} optimises two networks by itself, so that --trainer.{flag} cannot be "
                    f"honoured: remove it and give the model {own}={value} (--model.{own} {value})"
                )
        return []

    def training_state(self) -> dict[str, Any]:
        state = super().training_state()
        state["steps"] = [self.discriminator_steps, self.generator_steps, self.images_seen]
        if self._waiting and self.trainer.world_size == 1:  # each process has its own; one would not do for all
            named = self.discriminator.named_parameters()
            gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
            state["step_begun"] = {"batches": self._waiting, "gradients": gradients}
        return state

    def start_training(self, state: Mapping[str, Any]) -> None:
        if any(isinstance(config.scheduler, ReduceLROnPlateau) for config in self.trainer.lr_scheduler_configs):
            raise UserError(f"{type(self).__name__} has no loss to watch: ReduceLROnPlateau cannot be used")
        # before the log, which shows them
        self.discriminator_steps, self.generator_steps, self.images_seen = state.get("steps", [0, 0, 0])
        super().start_training(state)
        begun = state.get("step_begun", {})
        self._waiting = [(x.to(self.device), c.to(self.device)) for x, c in begun.get("batches", ())]
        for name, gradient in begun.get("gradients", {}).items():
            self.discriminator.get_parameter(name).grad = gradient.to(self.device)


@contextmanager
def one_step_a_batch(optimizers: list[LightningOptimizer]) -> Iterator[None]:
    """Count one step of the Trainer in this block, where Lightning counts every optimiser's."""
    before, after = optimizers[0]._on_before_step, optimizers[0]._on_after_step
    for optimizer in optimizers:
        optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
    yield
    before()
    after()
