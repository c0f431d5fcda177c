"""How far a training is: for schedules, and for runs that go on from a checkpoint."""

from typing import Any

from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LambdaLR

from lit_generative.checkpoints.load import require_training_state
from lit_generative.errors import UserError


def progress(trainer: Trainer, batches: int | None = None) -> float:
    """The fraction of the run that is done, in [0, 1]; exactly 1 at its end, and 0 where nothing bounds it.

    Measured in epochs, which mean the same after a resume with another batch size, accumulation or number of devices;
    in steps where ``max_steps`` bounds the run; the larger of both where both do.

    Args:
        batches: Those done in this epoch; default: all that have begun.
    """
    done = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        # unlike `estimated_stepping_batches`, known without the data: infinite before the training has looked at them
        length = trainer.num_training_batches
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready if batches is None else batches
        done = max(done, (trainer.current_epoch + batches / length) / trainer.max_epochs)
    return min(done, 1.0)


def resume_learning_rates(trainer: Trainer, before: float | None, now: float | None) -> None:
    """Give restored optimisers the rates of this run: of its ``lr``, if it is another, and of its length.

    Raises:
        ValueError: The rate ``before`` was 0, which says nothing of the schedule of another.
    """
    if before is not None and now is not None and now != before:
        if before == 0:
            raise UserError(f"the saved lr is 0, which cannot be rescaled to {now}: start a new run with --init_from")
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= now / before
                group["initial_lr"] = group.get("initial_lr", before) * now / before
        for config in trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [lr * now / before for lr in config.scheduler.base_lrs]
    for schedule in (config.scheduler for config in trainer.lr_scheduler_configs):
        if isinstance(schedule, LambdaLR):
            groups = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, base, factor in groups:
                group["lr"] = base * factor(schedule.last_epoch)


# Lightning 2.6 has several counters of epochs, and resumes by comparing them. It takes an epoch for done in which the
# run ended early (by ``max_steps``, by a clock); and where ``max_steps`` is set, it runs an empty epoch after one that
# is done. The data's order, the epochs' numbers in hooks and the steps of the curves would all be shifted.


def count_epochs(checkpoint: dict[str, Any]) -> None:
    """Make the counters in a checkpoint say that its epoch is over exactly where its last batch is done.

    Raises:
        ValueError: It holds weights only.
    """
    require_training_state(checkpoint)
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if not loop or not loop["epoch_progress"]["current"]["started"]:
        return
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    ended = epochs["current"]["processed"] >= epochs["current"]["started"]  # not yet in a validation after that batch
    # saved in the hook after that batch: Lightning leaves out its validation and the end of the epoch
    in_batch_end = batches["current"]["completed"] < batches["current"]["processed"]
    over = batches["is_last_batch"] and (ended or in_batch_end)
    for count in (epochs["total"], epochs["current"]):
        begun = count["started"]
        count |= {"ready": begun, "processed": begun - (not over), "completed": begun - (not over)}
    if over:
        batches["is_last_batch"] = False
        batches["total"] = dict.fromkeys(batches["total"], batches["total"]["ready"])
        batches["current"] = dict.fromkeys(batches["current"], 0)


def begin_next_epoch(trainer: Trainer) -> None:
    """As training starts: go on from a checkpoint between epochs as Lightning does where ``max_steps`` is not set."""
    loop = trainer.fit_loop
    epochs = loop.epoch_progress.current
    if loop.restarting and epochs.ready == epochs.completed:
        loop._restarting = False  # its setter says no
        loop.epoch_loop.restarting = False
