"""What every model shares under Lightning: checks at the start, checkpoints that name their class."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lit_generative.checkpoints.load import class_path
from lit_generative.checkpoints.plain import PlainArguments, plain
from lit_generative.checkpoints.pretrained import from_pretrained, save_pretrained
from lit_generative.checkpoints.record import record, upgrade
from lit_generative.errors import UserError, UserTypeError
from lit_generative.training.batches import TakesBatches, require_batches
from lit_generative.training.compilation import Compiles
from lit_generative.training.evaluation import Evaluates
from lit_generative.training.log import TrainLog
from lit_generative.training.optimization import Optimizes
from lit_generative.training.precision import AnyPrecision
from lit_generative.training.progress import begin_next_epoch, count_epochs, resume_learning_rates
from lit_generative.utils.rng import mixed_seed, rng_states, set_rng_states


class GenerativeModel(TakesBatches, Evaluates, Optimizes, Compiles, PlainArguments, AnyPrecision, TrainLog):
    """A LightningModule with the plumbing that has nothing to do with any paper.

    A model states ``image_shape`` and ``num_levels`` (256, or 2 for binary pixels); they are held against the data's
    before the first batch, and against that batch, see `TakesBatches`.
    """

    monitor: str | None = "val/loss"  # what the best checkpoint is chosen by unless told otherwise; None: the last
    log_prob_kind: str = ""  # the same of what `log_prob` gives by default
    immutable_hparams: tuple[str, ...] = ()  # arguments without which the weights mean something else

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._resumed = {}  # a run before may have stopped before it trained
        self.require_fitting(getattr(self.trainer, "datamodule", None))
        self.require_precision()
        strategy: Any = self.trainer.strategy
        synchronised = getattr(strategy, "_layer_sync", None) is not None and strategy.root_device.type == "cpu"
        if stage == "fit" and synchronised and any(isinstance(m, _BatchNorm) for m in self.modules()):
            raise UserError("batch norm cannot be synchronised on CPUs: add --trainer.sync_batchnorm false")

    def require_fitting(self, data: Any) -> None:
        """Raise a ValueError if the images that ``data`` promises are not those that the model is built for."""
        shape, num_levels = getattr(data, "image_shape", None), getattr(data, "num_levels", None)
        if not hasattr(self, "image_shape"):
            raise UserTypeError(f"{type(self).__name__} must set image_shape, the (C, H, W) of its images")
        model, source = type(self).__name__, type(data).__name__
        if shape is not None and tuple(shape) != tuple(self.image_shape):
            raise UserError(
                f"{model} is built for images of shape {tuple(self.image_shape)}, but {source} gives {tuple(shape)}: "
                f"set --model.image_shape '{list(shape)}', or --data.image_size"
            )
        if num_levels is not None and num_levels != self.num_levels:
            remedy = f"choose --data.binarize {'dynamic' if self.num_levels == 2 else 'none'}, or another likelihood"
            raise UserError(
                f"{model} is built for pixels with {self.num_levels} levels, but {source} has {num_levels}: {remedy}"
            )

    def require_unused_parameters(self, why: str) -> None:
        """Raise a ValueError if this run's DDP would stop at a step that leaves some parameters alone."""
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy):
            options = strategy._ddp_kwargs
            if options.get("static_graph") or not options.get("find_unused_parameters"):
                raise UserError(
                    f"{type(self).__name__} {why}, which plain DDP rejects as unused parameters: set "
                    "--trainer.strategy ddp_find_unused_parameters_true"
                )

    def convert_state_dict(self, state: dict[str, Tensor], file: str = "") -> dict[str, Tensor]:
        """A state dict of another's layout that the model knows under our names; others as they are.

        ``file`` is the name of its file without the extension.
        """
        return state

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights and what rebuilds the model into a folder; see `pretrained.save_pretrained`."""
        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "GenerativeModel":
        """The model that `save_pretrained` wrote, in eval mode on the CPU; see `pretrained.from_pretrained`.

        Raises:
            TypeError: The saved model is of another class.
        """
        model = from_pretrained(source)
        if not isinstance(model, cls):
            raise UserTypeError(f"{source} holds a {type(model).__name__}, not a {cls.__name__}")
        return model

    def programs(self) -> dict[str, tuple[torch.nn.Module, tuple[Tensor, ...]]]:
        """The networks that ``train.py export`` writes as programs, by name, each with an example of its inputs.

        The first dimension of inputs and outputs is the batch; ranges are those of the network.
        """
        return {}

    def hide_labels(self, c: Tensor) -> Tensor:
        """The labels that training shows the model."""
        return c

    # -- checkpoints, and training that goes on from them ------------------------------------------

    training_seconds: float = 0.0  # wall time of the training without validation, over all runs that were resumed
    _resumed: Mapping[str, Any] = MappingProxyType({})  # the state of the training that the next one goes on from
    _started: float | None = None

    def training_state(self) -> dict[str, Any]:
        """What a training that goes on from a checkpoint needs beyond weights and optimisers, in plain types."""
        states = rng_states(self.device)
        if self.processes > 1:
            states = {kind: self.all_gather(state.to(self.device)).cpu() for kind, state in states.items()}  # type: ignore[union-attr]
        else:
            states = {kind: state[None] for kind, state in states.items()}
        return {"rng": states, "log": self.log_begun(), "lr": self.hparams.get("lr")}  # rng: (processes, bytes)

    def start_training(self, state: Mapping[str, Any]) -> None:
        """Go on from what `training_state` gave; begin anew where it is empty."""
        self.start_log(state.get("log"))
        states = state.get("rng")
        if states is not None and len(states["cpu"]) == self.processes:  # each process draws its own noise
            set_rng_states({kind: rows[self.global_rank] for kind, rows in states.items()}, self.device)
        elif self.processes > 1:  # each its own noise, and none twice
            torch.manual_seed(mixed_seed(torch.initial_seed() % 2**32, self.global_rank, self.trainer.global_step))
        if state:
            resume_learning_rates(self.trainer, state.get("lr"), self.hparams.get("lr"))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        upgrade(checkpoint)
        own = record(checkpoint)
        self.training_seconds = own.get("training_seconds", 0.0)
        # only `Trainer.fit` with a checkpoint's path goes on from it; a training after a test of it begins
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING:
            return
        if "training_weights" in own:
            weights, state = own["training_weights"], checkpoint["state_dict"]
            own["averages"] = {name: state[name] for name in weights}
            state.update(weights)
        count_epochs(checkpoint)
        self.restore_choices(own.get("optimization", {}))
        self._resumed = own.get("run", {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the classes of the model and its data, so that a checkpoint alone is enough to test and to sample.

        Last of all: what callbacks added before is made of plain types here.
        """
        self.require_finite_weights(checkpoint["state_dict"])
        own = record(checkpoint)
        self._stop_clock(go_on=self._started is not None)
        own |= {"class_path": class_path(self), "training_seconds": self.training_seconds}
        own |= {"run": self.training_state(), "optimization": self.optimization_choices()}
        data = getattr(self._trainer, "datamodule", None)
        if data is not None and data.hparams:
            own["data"] = {"class_path": class_path(data), "init_args": dict(data.hparams)}
        checkpoint |= {key: plain(value) for key, value in checkpoint.items() if key != "state_dict"}

    def on_train_start(self) -> None:
        require_batches(self.trainer)
        self.advise_precision()
        begin_next_epoch(self.trainer)
        self._started = time.perf_counter()
        state, self._resumed = self._resumed, {}
        self.start_training(state)
        self.start_products()
        self.start_compiled()

    def teardown(self, stage: str) -> None:
        require_batches(self.trainer)

    def _stop_clock(self, go_on: bool = False) -> None:
        now = time.perf_counter()
        self.training_seconds += 0.0 if self._started is None else now - self._started
        self._started = now if go_on else None

    def on_validation_start(self) -> None:
        self._stop_clock()

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._started = time.perf_counter()

    def on_train_end(self) -> None:
        self._stop_clock()
        self.end_compiled()
        self.end_products()

    def on_test_start(self) -> None:
        self.start_compiled()

    def on_test_end(self) -> None:
        self.end_compiled()

    # After training the model is in eval mode; a second training takes the modes of the first, in which the user may
    # have frozen some parts.

    _trained: tuple[torch.nn.Module, ...] = ()

    def on_fit_end(self) -> None:
        self._trained = tuple(m for m in self.modules() if m.training)
        self.eval()

    def on_fit_start(self) -> None:
        for module in self._trained:
            module.training = True
        self._trained = ()
