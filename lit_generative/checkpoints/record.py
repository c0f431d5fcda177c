"""What a checkpoint holds beyond Lightning's own entries: one versioned record, whoever contributes to it.

    class_path        the model's class; its arguments are Lightning's ``hyper_parameters``
    data              class and arguments of the datamodule, if there was one
    training_seconds  wall time of the training so far
    run               what only a training that goes on from here needs, see `GenerativeModel.training_state`
    training_weights  by name: the weights that training goes on with, where ``state_dict`` has their averages
    optimization      the optimiser and the schedule that the user has chosen in place of the model's
    ema, wandb_id     the callbacks' own

Older checkpoints, which have these as entries of their own, become like today's in `upgrade`.
"""

from typing import Any

from lit_generative.errors import UserError

KEY, VERSION = "lit_generative", 1

# arguments of models and their values, as they were called before there was a version
RENAMED = {
    "accumulate": "accumulate_grad_batches",
    "bound_terms": "elbo_terms",
    "decay_from": "lr_decay_start",
    "levels": "num_downs",
    "share": "autoencoder_fraction",
    "target": "parameterization",
    "unlabelled": "label_dropout",
    "warmup": "lr_warmup_steps",
}
RENAMED_VALUES = {("stack", "dense"): "fully_connected"}
DOWNLOADED = ("datamodules.mnist.", "datamodules.cifar10.")
_RUN = {  # before and now
    "rng_state": "rng",
    "train_log": "log",
    "adversarial_steps": "steps",
    "adversarial_step_begun": "step_begun",
    "flow_begun": "flow_started",
}


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


def record(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Our record in a checkpoint, to read and to write; a new one if it has none."""
    return checkpoint.setdefault(KEY, {"version": VERSION})


def upgrade(checkpoint: dict[str, Any], path: Any = "the checkpoint") -> None:
    """Give a checkpoint of an older version today's form, in place; one of today's stays as it is.

    Raises:
        CheckpointError: It is of a newer version.
    """
    if KEY in checkpoint:
        version = checkpoint[KEY].get("version") if isinstance(checkpoint[KEY], dict) else None
        if not isinstance(version, int):
            raise CheckpointError(f"{path} does not say its version: it is damaged, or not ours")
        if version > VERSION:
            raise CheckpointError(
                f"{path} has format version {version}, and this lit-generative reads version {VERSION}: upgrade it"
            )
        return
    if "class_path" not in checkpoint:
        return
    own, arguments = record(checkpoint), checkpoint.get("hyper_parameters")
    for key in ("class_path", "data", "training_seconds", "wandb_id"):
        if key in checkpoint:
            own[key] = checkpoint.pop(key)
    data = own.get("data")
    if isinstance(data, dict) and str(data.get("class_path")).startswith("datamodules."):
        for name in ("download", "bundled") if not data["class_path"].startswith(DOWNLOADED) else ():
            data["init_args"].pop(name, None)  # which did nothing
    own["run"] = {now: checkpoint.pop(before) for before, now in _RUN.items() if before in checkpoint}
    if isinstance(arguments, dict):
        checkpoint["hyper_parameters"] = upgrade_arguments(own["class_path"], arguments)
        own["run"]["lr"] = arguments.get("lr")
    if averaged := checkpoint.pop("ema", None):
        own["training_weights"], own["ema"] = averaged["weights"], {"updates": averaged["updates"]}


def upgrade_arguments(class_path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a model of ours under today's names, also those of a model among them."""
    if not class_path.startswith("lit_generative.models."):
        return arguments
    new = {}
    for name, value in arguments.items():
        name = RENAMED.get(name, name)
        if isinstance(value, dict) and isinstance(value.get("init_args"), dict):
            value = value | {"init_args": upgrade_arguments(value["class_path"], value["init_args"])}
        new[name] = RENAMED_VALUES.get((name, value), value) if isinstance(value, str) else value
    return new
