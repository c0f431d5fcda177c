"""Weights that come from elsewhere and go elsewhere: fine-tuning, folders of safetensors, exported programs."""

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save
from torch import Tensor

from lit_generative.checkpoints.load import (
    build,
    class_path,
    described,
    find_class,
    read_safely,
    require_same_meaning,
    require_same_shapes,
)
from lit_generative.checkpoints.record import KEY, CheckpointError, record, upgrade, upgrade_arguments
from lit_generative.utils.files import atomic_write, require_new

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# best first, where a place holds several files
KNOWN = (WEIGHTS, "diffusion_pytorch_model.safetensors", "best.ckpt", "last.ckpt", "latest_net_G.pth")
SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")


# -- where weights are -----------------------------------------------------------------------------


def fetch(source: str) -> Path:
    """The file of weights that ``source`` names, downloaded if it is not local.

    ``FILE``; a ``FOLDER`` with one; ``wandb://entity/project/name:version``, an artifact; or
    ``hf://owner/name[:file]``, a repository of Hugging Face.

    Raises:
        CheckpointError: There is none; or a package or the network that it needs is not there.
    """
    if source.startswith("wandb://"):
        return _one_of(_from_wandb(source.removeprefix("wandb://")), source)
    if source.startswith("hf://"):
        return _from_hugging_face(source)
    path = Path(source).expanduser()
    return _one_of(path, source) if path.is_dir() else path


def _one_of(folder: Path, source: str) -> Path:
    return folder / _choose(sorted(path.name for path in folder.iterdir()), source)


def _choose(names: list[str], source: str) -> str:
    weights = [name for name in names if name.endswith(SUFFIXES)]
    found = [name for name in KNOWN if name in weights] or weights
    if not found or (found[0] not in KNOWN and len(found) > 1):
        raise CheckpointError(f"{source} holds {', '.join(weights) or 'no weights'}: name one file")
    return found[0]


def _from_wandb(name: str) -> Path:
    import wandb

    try:
        return Path(wandb.Api().artifact(name).download())
    except (wandb.Error, ValueError, OSError) as error:
        raise CheckpointError(f"the artifact wandb://{name} cannot be downloaded: {error}") from error


def _from_hugging_face(source: str) -> Path:
    repository, _, name = source.removeprefix("hf://").partition(":")
    try:
        from huggingface_hub import hf_hub_download, list_repo_files
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{source} needs huggingface_hub: pip install huggingface_hub") from error
    try:
        return Path(hf_hub_download(repository, name or _choose(list_repo_files(repository), source)))
    except CheckpointError:
        raise
    except Exception as error:  # of many types: of HTTP, and its own
        raise CheckpointError(f"{source} cannot be downloaded: {next(iter(str(error).splitlines()), error)}") from error


# -- fine-tuning -----------------------------------------------------------------------------------


def weights_of(saved: Any, path: Path, raw: bool = False) -> dict[str, Tensor]:
    """The named tensors of what the file ``path`` holds: a state dict, ours or another's, or a checkpoint.

    Of a checkpoint with averaged weights (`EMA`) these, or the ``raw`` ones.

    Raises:
        CheckpointError: It holds something else.
    """
    others = record(saved).get("training_weights") if isinstance(saved, dict) and KEY in saved else None
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    if not isinstance(saved, dict) or not saved or not all(isinstance(v, Tensor) for v in saved.values()):
        raise CheckpointError(f"{path} holds no state dict, that is, tensors by name")
    if raw and not isinstance(others, dict):
        raise CheckpointError(f"{path} holds no averaged weights, and so no raw ones: leave out init_from_raw")
    return saved | others if raw and others else saved


def init_from(model: Any, source: str, raw: bool = False, partly: bool = False) -> Any:
    """Load into ``model`` the weights whose name and shape fit, and say which were loaded, skipped and left fresh.

    Args:
        model: The model that takes them.
        source: What `fetch` takes, or several with commas between them.
        raw: Of checkpoints with averaged weights (`EMA`), take the weights that were averaged.
        partly: Allow that more than half of the model is left fresh.

    Returns:
        The model.

    Raises:
        CheckpointError: Nothing can be read; or more than half of the model's numbers would be left fresh.
    """
    state: dict[str, Tensor] = {}
    for place in [source] if Path(source).expanduser().exists() else source.split(","):
        path = fetch(place.strip())
        saved = read_safely(path)
        if isinstance(saved, dict) and isinstance(saved.get("class_path", ""), str):
            upgrade(saved, path)
            if KEY in saved and record(saved).get("class_path") == class_path(model):
                require_same_meaning(model, saved)
        state |= model.convert_state_dict(weights_of(saved, path, raw), Path(path).stem)
    own = model.state_dict()
    fitting = {name: v for name, v in state.items() if name in own and v.shape == own[name].shape}
    skipped = [
        f"{name} {tuple(v.shape)}" + (f", not {tuple(own[name].shape)}" if name in own else ", not in the model")
        for name, v in state.items()
        if name not in fitting
    ]
    fresh = [name for name in own if name not in fitting]
    left, total = (sum(own[name].numel() for name in names) for names in (fresh, own))
    report = f"{source}: {len(fitting)} weights loaded"
    report += f"; {len(skipped)} skipped ({', '.join(skipped[:3])}{', ...' * (len(skipped) > 3)})" if skipped else ""
    report += f"; {len(fresh)} left fresh ({', '.join(fresh[:3])}{', ...' * (len(fresh) > 3)})" if fresh else ""
    if not fitting or (2 * left > total and not partly):
        remedy = " If this is meant, set init_from_partly" if fitting else ""
        raise CheckpointError(
            f"{report}: that is {left:,} of {total:,} numbers; is it a checkpoint of another model?{remedy}"
        )
    model.load_state_dict(fitting, strict=False)
    rank_zero_info(report)
    return model


# -- folders ---------------------------------------------------------------------------------------


def save_pretrained(model: Any, folder: str | Path) -> None:
    """Write ``model.safetensors`` and ``config.json``: its class, its arguments, and the checksum of its weights.

    Raises:
        FileExistsError: One of them is there already.
    """
    folder = Path(folder)
    require_new(folder / WEIGHTS, folder / CONFIG)
    # safetensors wants every tensor whole and its own
    content = save({name: v.detach().cpu().contiguous().clone() for name, v in model.state_dict().items()})
    config = described(type(model), class_path(model), dict(model.hparams))
    config["sha256"] = hashlib.sha256(content).hexdigest()
    with atomic_write(folder / WEIGHTS) as file:
        file.write(content)
    with atomic_write(folder / CONFIG, "w") as file:
        file.write(json.dumps(config, indent=2) + "\n")


def from_pretrained(source: str | Path) -> LightningModule:
    """The model that `save_pretrained` wrote, in eval mode on the CPU; ``source`` is a folder, or as in `fetch`.

    Raises:
        CheckpointError: Weights or description are missing or damaged, or do not fit together.
    """
    weights = fetch(str(source))
    if weights.suffix.lower() == ".ckpt":
        raise CheckpointError(f"{source} is a checkpoint: `lit_generative.checkpoints.load.load_model` reads those")
    if not weights.is_file():
        raise CheckpointError(f"there is neither a folder nor a file {source}")
    path = weights.with_name(CONFIG)
    if not path.is_file() and str(source).startswith("hf://"):
        repository = str(source).partition(":")[2].removeprefix("//").partition(":")[0]
        path = _from_hugging_face(f"hf://{repository}:{CONFIG}")
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        wanted, checksum = config["class_path"], config["sha256"]
        cls = find_class(wanted, LightningModule)
        arguments = described(cls, wanted, upgrade_arguments(wanted, config["init_args"]))["init_args"]
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say what model this is ({error})") from error
    if hashlib.sha256(weights.read_bytes()).hexdigest() != checksum:
        raise CheckpointError(f"{weights} is damaged: its checksum is not that of {path}")
    model: Any = build(cls, arguments, path)
    state = load_file(weights)
    require_same_shapes(model, {KEY: {"class_path": wanted}, "state_dict": state}, weights)
    model.load_state_dict(state)
    return model.eval()


# -- programs --------------------------------------------------------------------------------------


def export_programs(model: Any, folder: str | Path) -> list[Path]:
    """Write every network of ``model.programs()`` as ``<name>.pt2`` (`torch.export`), for batches of any size.

    Raises:
        FileExistsError: One of them is there already.
    """
    require_new(*(Path(folder) / f"{name}.pt2" for name in model.programs()))
    written = []
    for name, (network, example) in model.programs().items():
        every_batch = tuple({0: torch.export.Dim.AUTO} for _ in example)
        plain = deepcopy(network).eval()
        for p in plain.parameters():
            p.data = p.data.contiguous()  # programs choose their own layout
        program = torch.export.export(plain, example, dynamic_shapes=every_batch)
        path = Path(folder) / f"{name}.pt2"
        torch.export.save(program, path)
        written.append(path)
    return written
