"""``torch.compile`` of the functions that hold the arithmetic of a training or a test, not of hooks and logging."""

import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_generative.errors import UserError
from lit_generative.utils.tasks import tracked

Step = Callable[..., Any]
CACHE = Path(torch.hub.get_dir()).parent / "inductor"


class Compiles(LightningModule):
    """A model whose training steps can be compiled, and what takes most of the time of its test, see `compile`.

    It names the methods to compile in ``compiled_functions`` and in ``compiled_evaluations``: pure functions of tensors
    but for random draws and buffers. The first argument of each is the images ``(B, ...)`` or the batch.
    """

    compiled_functions: tuple[str, ...] = ()
    compiled_evaluations: tuple[str, ...] = ()
    compile_seconds: float = 0.0  # spent on compiling in this run
    _clock: float  # of `TrainLog`
    _compile_options: dict[str, Any] | None = None
    _replaced: tuple[str, ...] = ()  # the methods in whose place there are compiled ones

    def compile(self, mode: str = "default") -> None:  # nn.Module's compiles `forward`
        """Compile training steps, and the likelihoods of tests, from the next run on.

        The numbers are those of uncompiled steps up to rounding, with the same random draws. Not compiled: batches of
        another size than the loader's, steps in which a module has ``waits`` set (an `ActNorm` before its first batch,
        a VAE whose KL term's weight still rises), and validation. Checkpoints are the same.

        Args:
            mode: That of ``torch.compile``: ``default``; on a GPU also ``reduce-overhead`` or ``max-autotune``.

        Raises:
            ValueError: There is no such mode, or this model has nothing that can be compiled.
        """
        if not self.compiled_functions:
            raise UserError(f"{type(self).__name__} has no steps that can be compiled: remove --compile")
        keep_compiled_code()
        self._compile_options = self.compile_options(mode)

    @staticmethod
    def compile_options(mode: str = "default") -> dict[str, Any]:
        """Options of ``torch.compile`` for a mode of it, with the random draws of uncompiled code; see `compile`."""
        try:
            return {**torch._inductor.list_mode_options(mode), "fallback_random": True}
        except RuntimeError as error:
            message = f"torch.compile has no mode {mode}: choose default, reduce-overhead or max-autotune"
            raise UserError(message) from error

    def start_compiled(self) -> None:
        """Put compiled functions in the place of the model's, if `compile` asked for them."""
        self.end_compiled()  # a training before may have ended by an error
        if self._compile_options is None:
            return
        require_compiler(self.device)
        self.compile_seconds = 0.0
        self._replaced = self.compiled_evaluations if self.trainer.testing else self.compiled_functions
        if not self._replaced:
            rank_zero_info(f"nothing of a test of {type(self).__name__} is compiled")
        size = getattr(self.trainer.train_dataloader, "batch_size", None)
        for name in self._replaced:
            function = self._compiled_evaluation(name) if self.trainer.testing else self._compiled(name, size)
            vars(self)[name] = function

    def end_compiled(self) -> None:
        """Take the compiled functions away again."""
        for name in self._replaced:
            del vars(self)[name]
        self._replaced = ()

    def _compiled(self, name: str, size: int | None) -> Step:
        """The method of that name, compiled for training with batches of ``size`` (None: any)."""
        slow: Step = getattr(self, name)
        fast: Step = torch.compile(slow, options=self._compile_options)
        waiting = list(self.modules())  # until none of them does something else than in all later steps
        known: set[bool] = set()  # whether gradients were on in earlier calls: each is compiled by itself

        def step(first: Any, *rest: Any) -> Any:
            images = first if isinstance(first, Tensor) else first[0]
            others = size is not None and len(images) != size
            if not self.training or others or any(getattr(module, "waits", False) for module in waiting):
                return slow(first, *rest)
            waiting.clear()
            if torch.is_grad_enabled() in known:
                return fast(first, *rest)
            known.add(torch.is_grad_enabled())
            return self._first(name, fast, first, *rest)

        return step

    def _compiled_evaluation(self, name: str) -> Step:
        """The method of that name, compiled for arguments of the shapes of the first that it is given."""
        slow: Step = getattr(self, name)
        fast: Step = torch.compile(slow, options=self._compile_options)
        compiled: list[torch.Size] = []

        def function(*arguments: Tensor) -> Any:
            shapes = [a.shape for a in arguments]
            if compiled:
                return (fast if shapes == compiled else slow)(*arguments)
            compiled[:] = shapes
            return self._first(name, fast, *arguments)

        return function

    def _first(self, name: str, fast: Step, *arguments: Any) -> Any:
        """The call that compiles."""
        start = time.perf_counter()
        with warnings.catch_warnings():  # the compiler looks at the gradients of what has none
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            for _ in tracked([name], f"compiling {name}"):  # a display leaves it out of images/s
                result = fast(*arguments)
        seconds = time.perf_counter() - start
        self.compile_seconds += seconds
        if self.trainer.training:
            self._clock += seconds  # images/s are those of steps
        rank_zero_info(f"compiled {name} in {seconds:.0f} s (kept in {os.environ['TORCHINDUCTOR_CACHE_DIR']})")
        return result


def keep_compiled_code() -> None:
    """Let torch keep it beside what it downloads; its own choice is a temporary folder that a restart empties."""
    if Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torchinductor_")).name.startswith("torchinductor_"):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(CACHE)


def require_compiler(device: torch.device) -> None:
    """Raise a ValueError if code for the CPU is to be compiled and there is no compiler."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, names)):
        raise UserError(
            f"--compile needs a C++ compiler, and {' or '.join(names)} is not installed: install one (Debian: "
            "apt install g++), or train without --compile"
        )
