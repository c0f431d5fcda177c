"""Reading checkpoints. Nothing here unpickles: what holds more than tensors and plain types is refused."""

import inspect
import pickle
import re
import warnings
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lit_generative.checkpoints.plain import accepted
from lit_generative.checkpoints.record import KEY, CheckpointError, record, upgrade
from lit_generative.errors import UserError


def class_path(obj: object) -> str:
    """The importable name of an object's class."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a Lightning checkpoint on the CPU with ``weights_only=True``, in today's form, see `upgrade`.

    Raises:
        CheckpointError: The file is missing, torn, no checkpoint of ours, of a newer version, or would have to execute
            code.
    """
    checkpoint = read_safely(Path(path))
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("class_path", ""), str):
        upgrade(checkpoint, path)
    if not isinstance(checkpoint, dict) or KEY not in checkpoint or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint written by a model of lit-generative")
    arguments = checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    weights, cls = checkpoint["state_dict"], record(checkpoint).get("class_path")
    if not (isinstance(arguments, dict) and isinstance(weights, dict) and isinstance(cls, str)):
        raise CheckpointError(f"{path} lacks entries of a checkpoint: it is damaged, or not ours")
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(f"{path}: state_dict must hold tensors only; the file is damaged, or not ours")
    return checkpoint


def read_safely(path: Path) -> Any:
    """What a file holds, on the CPU, nothing executed."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        if is_zipfile(path):  # all but files of an old torch, or torn ones
            with ZipFile(path) as file:
                if torn := file.testzip():  # torch itself does not look at the checksums
                    raise RuntimeError(f"the checksum of its part {torn} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about what follows as an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        objects = f"objects{f' ({named[1]})' if named else ''} other than tensors and plain types"
        raise CheckpointError(
            f"{path} holds {objects}, which may execute code, and was not loaded; or it is damaged"
        ) from error
    except (
        OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AssertionError, AttributeError,
        SafetensorError, BadZipFile,
    ) as error:  # fmt: skip
        reason = str(error).partition(". ")[0]  # torch says what may be its cause, at length
        raise CheckpointError(f"{path} is damaged or no checkpoint: {reason}") from error


def known_classes(base: type, package: str = "") -> list[type]:
    """All imported subclasses of ``base``, or those that a package of that name defines."""
    classes: list[type] = base.__subclasses__()
    for cls in classes:
        classes += cls.__subclasses__()
    return [cls for cls in dict.fromkeys(classes) if cls.__module__.startswith(package)]


def find_class(path: str, base: type) -> type:
    """The already imported subclass of ``base`` of that name; a checkpoint never makes us import or call another."""
    for cls in known_classes(base):
        if f"{cls.__module__}.{cls.__qualname__}" == path:
            return cls
    key = "data" if issubclass(base, LightningDataModule) else "model"
    raise CheckpointError(
        f"the checkpoint asks for the class {path}, which is not known: import its module first (train.py does so with "
        f"--{key} {path})"
    )


def import_classes(config: Any) -> None:
    """Import every class that a configuration of the user's, of any depth, names as a ``class_path``.

    What cannot be imported is passed over: using it says why.
    """
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if isinstance(value, dict | list):
            import_classes(value)
        elif key == "class_path" and isinstance(value, str) and "." in value:
            with suppress(ImportError, AttributeError, ValueError):
                resolve_name(value)


def model_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint says of its model, as the CLI writes it: ``{"class_path": ..., "init_args": ...}``."""
    saved, path = checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {}), record(checkpoint)["class_path"]
    return described(find_class(path, LightningModule), path, saved)


def described(cls: type, path: str, saved: dict[str, Any]) -> dict[str, Any]:
    """A class and those of the arguments ``saved`` that are its own, as the CLI writes them.

    Raises:
        CheckpointError: There are some that no version known here has.
    """
    own = accepted(cls)
    # older checkpoints also hold what was handed to parent classes
    known = {name for parent in cls.__mro__ for name in inspect.signature(parent.__init__).parameters}  # type: ignore[misc]
    if unknown := [name for name in saved if name not in known]:
        raise CheckpointError(
            f"the checkpoint says of its {cls.__name__} what this version does not understand "
            f"({', '.join(map(str, unknown))}): it may be another version's"
        )
    return {"class_path": path, "init_args": {name: value for name, value in saved.items() if name in own}}


def data_config(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The same of the data that the model was trained on; None if it was not trained through a datamodule."""
    data = record(checkpoint).get("data")
    if data is None:
        return None
    return described(find_class(data["class_path"], LightningDataModule), data["class_path"], data["init_args"])


def saved_class(checkpoint: dict[str, Any], key: str) -> str | None:
    """The class of a checkpoint's ``model`` or ``data``; None if it was not trained through a datamodule."""
    own = record(checkpoint)
    return own["class_path"] if key == "model" else (own.get("data") or {}).get("class_path")


def require_same_shapes(model: torch.nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raise a CheckpointError that names the weights of a checkpoint that do not fit into ``model``."""
    name, trained = type(model).__name__, record(checkpoint)["class_path"].split(".")[-1]
    if name != trained:
        raise CheckpointError(f"{path} holds a {trained}, not a {name}: leave out --model, or use --init_from")
    ours, theirs = model.state_dict(), checkpoint["state_dict"]
    differing = [
        f"{name} {tuple(theirs[name].shape) if name in theirs else 'missing'}, "
        f"not {tuple(ours[name].shape) if name in ours else 'wanted'}"
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    ]
    if differing:
        raise CheckpointError(
            f"{path} holds a {trained} of another size ({differing[0]}; "
            f"{len(differing)} weights differ): leave out the --model arguments, or the recipe, that change the network"
        )


def require_same_meaning(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Raise a CheckpointError if ``immutable_hparams`` of ``model`` differ from the checkpoint's."""
    saved = checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    now: Any = getattr(model, "hparams", {})
    for name in getattr(model, "immutable_hparams", ()):
        if name in saved and now[name] != saved[name]:
            raise CheckpointError(
                f"the weights were trained with {name}={saved[name]}, and mean nothing with {now[name]}: leave out "
                f"--model.{name}"
            )


def build(cls: type, arguments: dict[str, Any], path: str | Path) -> LightningModule:
    """An object of the class with the arguments that ``path`` has for it, or a CheckpointError."""
    try:
        return cls(**arguments)
    except CheckpointError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} says of its {cls.__name__} what this version does not understand ({error})"
        ) from error


def load_model(path: str | Path) -> LightningModule:
    """Rebuild the model that a checkpoint holds, with its weights, in eval mode on the CPU."""
    checkpoint = read_checkpoint(path)
    config = model_config(checkpoint)
    model = build(find_class(config["class_path"], LightningModule), config["init_args"], path)
    require_same_shapes(model, checkpoint, path)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def has_training_state(checkpoint: dict[str, Any]) -> bool:
    """Whether training can go on from a checkpoint; one of weights only (``save_weights_only``) has no optimisers."""
    return "optimizer_states" in checkpoint


def require_training_state(checkpoint: dict[str, Any]) -> None:
    """Raise a ValueError if training cannot go on from a checkpoint, which says how to begin from it."""
    if not has_training_state(checkpoint):
        raise UserError(
            "the checkpoint holds weights only, and training cannot go on from it: to start from these weights use "
            "--init_from in place of --ckpt_path"
        )
