"""What models are fed: one rule for the batches of every loader, and for images that are given to a method.

Structure, type and shape are checked in every batch, which takes microseconds. Values are checked in the first batch of
every stage and loader only: asking for them waits for the device.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_generative.errors import UserError, UserTypeError
from lit_generative.protocols import HasLogProb

# names under which loaders give images, and labels or source images
IMAGES = ("x", "image", "images", "img", "pixel_values")
CONDITIONS = ("c", "y", "label", "labels", "source")


def describe(batch: Any) -> str:
    """Types, dtypes and shapes of what a loader gave, in words.

    >>> describe([torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.long)])
    '[float32 (2, 1, 28, 28), int64 (2,)]'
    """
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return f"{{{', '.join(f'{name}: {describe(value)}' for name, value in list(batch.items())[:5])}}}"
    if isinstance(batch, tuple | list):
        more = [f"... {len(batch)} entries"] if len(batch) > 4 else []
        return f"[{', '.join([*map(describe, batch[:4]), *more])}]"
    return type(batch).__name__


def unpack(batch: Any) -> tuple[Any, Any]:
    """Images, and what goes with them (None: nothing), of ``x``, ``(x,)``, ``(x, c)`` or a mapping.

    Raises:
        TypeError: The batch is none of these.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        return batch[0], batch[1] if len(batch) == 2 else None
    if isinstance(batch, Mapping):
        x, c = ([batch[name] for name in names if name in batch] for names in (IMAGES, CONDITIONS))
        if len(x) == 1:
            return x[0], c[0] if len(c) == 1 else None
    raise UserTypeError(
        f"a batch is images x, (x,), (x, c) with labels or source images c, or a mapping with one entry among "
        f"{', '.join(IMAGES)}, and c as one among {', '.join(CONDITIONS)}; got {describe(batch)}: have the loader's "
        "data set or its collate_fn return (x, c)"
    )


def reshaping(got: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What to do with a tensor of shape ``got`` where images ``(B, *wanted)`` are expected."""
    c, h, w = wanted
    if got == wanted:
        return "add the dimension of the batch with x.unsqueeze(0), or give the loader a batch_size"
    if c == 1 and len(got) == 3 and got[1:] == (h, w):
        return "add the channel with x.unsqueeze(1)"
    if len(got) == 4 and got[1:] == (h, w, c):
        return "put channels first with x.permute(0, 3, 1, 2)"
    if len(got) == 2 and got[1] == c * h * w:
        return f"x.unflatten(1, {wanted}) makes images of vectors"
    if len(got) == 4:
        return f"build the model with image_shape={got[1:]}, or convert the images"
    return "have the loader return images of this shape"


def rescaling(low: float, high: float) -> str:
    """What to do with images whose values range from ``low`` to ``high``."""
    if low >= 0 and 2 < high <= 255:
        return "divide by 255"
    if low >= 0 and high > 255:
        return "divide by the largest level that is possible, as 65535 in 16 bits"
    if low < 0 and low >= -1.01 and high <= 1.01:
        return "take (x + 1) / 2, or leave out the transform that normalises them to [-1, 1]"
    if low >= -0.5 and high <= 1.5:
        return "clamp them with x.clamp(0, 1): some ways of resizing overshoot"
    return "leave out the transform that normalises them; models change the range by themselves"


class TakesBatches(LightningModule):
    """A model whose steps and callbacks see every batch as ``(x, c)``, and none that it is not built for.

    ``x`` has the model's dtype. A model of p(x) gets labels -1 as ``c`` where a loader gives none.
    """

    image_shape: tuple[int, int, int]
    num_levels: int = 256
    smallest_batch: int = 1  # images that a training needs in a batch, except in an epoch's last
    _begun: frozenset[tuple[Any, int]] = frozenset()  # stages and loaders whose first batch was checked

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._begun = frozenset()  # other loaders may come

    def _apply_batch_transfer_handler(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        # Lightning's; of the public hook on_after_batch_transfer, the datamodule's replaces the model's
        batch = super()._apply_batch_transfer_handler(batch, device, dataloader_idx)
        stage = None if self._trainer is None else self._trainer.state.stage
        if stage is None:
            return batch
        first = (stage, dataloader_idx) not in self._begun
        batch = self.take_batch(batch, first)
        if first:
            self._begun |= {(stage, dataloader_idx)}
        return batch

    def take_batch(self, batch: Any, first: bool) -> tuple[Any, Any]:
        """``(x, c)`` of what a loader gave; values are checked in the ``first`` batch of a stage.

        Models of other things than images override this.

        Raises:
            TypeError: The batch is not made of images, or these are not floats.
            ValueError: Shape, range, levels or ``c`` are not those that the model is built for.
        """
        x, c = unpack(batch)
        self.require_images(x)
        if not len(x):
            raise UserError(f"{self._place()}: the batch is empty")
        if first:
            if self.trainer.training and len(x) < self.smallest_batch:
                raise UserError(
                    f"{self._place()} needs {self.smallest_batch} images or more in a batch, got {len(x)}: raise the "
                    "loader's batch_size"
                )
            self.require_range(x)
            self.require_levels(x)
        return x.to(self.dtype), self.take_condition(c, x, first)

    def take_condition(self, c: Any, x: Tensor, first: bool) -> Tensor:
        """What the images ``x`` are conditioned on, from the ``c`` of a loader (None: it gave nothing).

        Here for models of p(x), which ignore it: callbacks need only know which entry belongs to which image.
        """
        if not isinstance(c, Tensor):
            return torch.full((len(x),), -1, device=x.device)
        if c.ndim == 0 or len(c) != len(x):
            raise UserError(
                f"{self._place()}: {len(x)} images came with c of shape {tuple(c.shape)}: give one for each"
            )
        return c

    def require_images(self, x: Any) -> None:
        """Raise an error unless ``x`` is float images ``(B, *image_shape)``; their values are not looked at."""
        self.require_floats(x, tuple(self.image_shape))

    def require_floats(self, x: Any, shape: tuple[int, ...], what: str = "images") -> None:
        """Raise a TypeError or ValueError unless ``x`` is a float tensor ``(B, *shape)``."""
        if isinstance(x, Tensor) and x.is_floating_point() and x.shape[1:] == shape:
            return
        expected = f"{self._place()} takes float {what} (B, {', '.join(map(str, shape))}) in [0, 1], got {describe(x)}"
        if not isinstance(x, Tensor):
            raise UserTypeError(f"{expected}: convert with torch.as_tensor, or have the loader do it")
        if x.dtype == torch.uint8:
            raise UserTypeError(
                f"{expected}: divide by 255 (lit_generative.images.from_uint8); the loaders of a datamodule are for "
                "that datamodule, which does so: pass `datamodule=` to the Trainer instead of them"
            )
        if not x.is_floating_point():
            raise UserTypeError(f"{expected}: convert with x.float() and scale to [0, 1]")
        raise UserError(f"{expected}: {reshaping(tuple(x.shape), shape)}")

    def require_range(self, x: Tensor, what: str = "images") -> None:
        """Raise a ValueError if ``x`` is not in [0, 1], up to rounding, or not finite. Waits for the device."""
        low, high = float(x.min()), float(x.max())
        rounding = max(1e-4, 2 * torch.finfo(x.dtype).eps)
        if -rounding <= low and high <= 1 + rounding:
            return
        if not x.isfinite().all():
            raise UserError(f"{self._place()}: the {what} hold NaN or infinite values: look for them in the data")
        raise UserError(
            f"{self._place()} takes {what} in [0, 1], got values from {low:.4g} to {high:.4g}: {rescaling(low, high)}"
        )

    def require_levels(self, x: Tensor) -> None:
        """Raise a ValueError if a model of binary pixels gets others; warn if one of 8-bit pixels does.

        A mass on 256 levels says nothing of values between them; models without a likelihood take these. Waits for the
        device.
        """
        steps = self.num_levels - 1
        if steps > 1 and not isinstance(self, HasLogProb):
            return
        scaled = x * steps
        rounding = max(1e-3, steps * torch.finfo(x.dtype).eps)
        if not ((scaled - scaled.round()).abs() > rounding).any():
            return
        if steps == 1:
            raise UserError(
                f"{self._place()} takes binary pixels, 0 or 1, got grey levels: binarise them (x.bernoulli(), or "
                "binarize='dynamic' of a datamodule), or choose another likelihood"
            )
        rank_zero_warn(
            f"{self._place()}: its likelihood is of pixels k/{steps}, got others, whose log-probabilities mean little: "
            f"take (x * {steps}).round() / {steps} after the last transform"
        )

    def _place(self) -> str:
        """The model, and in a run the stage, for messages."""
        stage = None if self._trainer is None else self._trainer.state.stage
        return type(self).__name__ if stage is None else f"{type(self).__name__} ({stage.value} batch)"


def require_batches(trainer: Trainer) -> None:
    """Raise an error if a stage has no batches, which Lightning passes over.

    A limit of 0 asks for none, and so does a training without a loader for validation. A loader that does not know its
    length shows only when the stage is over that it had nothing.

    Raises:
        ValueError: A set is empty; the message says which.
    """
    stages: dict[Any, tuple[str, Any, Any]] = {
        TrainerFn.VALIDATING: ("validation", trainer.limit_val_batches, trainer.validate_loop),
        TrainerFn.TESTING: ("test", trainer.limit_test_batches, trainer.test_loop),
        TrainerFn.PREDICTING: ("prediction", trainer.limit_predict_batches, trainer.predict_loop),
    }
    if trainer.state.fn == TrainerFn.FITTING:
        batches = {"training": (trainer.limit_train_batches, trainer.num_training_batches)}
        if trainer.val_dataloaders not in (None, []):
            batches["validation"] = trainer.limit_val_batches, sum(trainer.num_val_batches)
    else:
        name, limit, loop = stages[trainer.state.fn]
        batches = {name: (limit, sum(loop.max_batches) and loop.batch_progress.current.ready)}
    data = getattr(trainer, "datamodule", None)
    for name, (limit, count) in batches.items():
        if count == 0 and limit != 0:
            source = "the loader" if data is None else type(data).__name__
            raise UserError(f"{source} gives no images for {name}: that set is empty")
