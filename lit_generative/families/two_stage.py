"""An autoencoder that is there already, for models of its latents."""

from pathlib import Path
from typing import Any

from lit_generative.checkpoints.load import find_class, load_model, model_config, read_checkpoint
from lit_generative.errors import UserError, UserTypeError
from lit_generative.generative_model import GenerativeModel
from lit_generative.protocols import HasLatent


def load_frozen_autoencoder(
    source: str | Path | dict[str, Any], image_shape: tuple[int, int, int]
) -> tuple[Any, dict[str, Any]]:
    """A frozen model that can encode and decode, from a checkpoint or from what an earlier one said of it, and that.

    Raises:
        CheckpointError: No such checkpoint.
        TypeError: A model that cannot encode and decode.
        ValueError: One of other images.
    """
    model: Any
    if isinstance(source, str | Path):
        model, config = load_model(source), model_config(read_checkpoint(source))
    else:
        model, config = find_class(source["class_path"], GenerativeModel)(**source["init_args"]), source
    can: bool = isinstance(model, HasLatent)
    if not can:
        raise UserTypeError(f"an autoencoder must `encode` and `decode`, which {type(model).__name__} cannot")
    if tuple(model.image_shape) != tuple(image_shape):
        raise UserError(f"the autoencoder is one of images {tuple(model.image_shape)}, not {tuple(image_shape)}")
    return model.eval().requires_grad_(False), config
