"""``python killed_run.py MOMENT N ARGS...``: ``train.py ARGS``, which gets SIGKILL the N-th time that MOMENT comes.

``epoch`` is the first batch after an epoch's end. SIGTERM, SIGINT and SIGUSR1 are moments too: these signals, in the
N-th batch; ``rank``, ``rank-SIGTERM`` and so on: a batch of the second process, when the job runs for the first time;
``rank-nan``: a loss there that is NaN; ``rank-sanity``: SIGTERM before training.
"""

import io
import os
import signal
import sys

import torch

import train
from lit_generative.models.vae import VAE
from lit_generative.training.run_logger import RunLogger


def killed(call, n, before=lambda *args: None, number=signal.SIGKILL, counts=lambda *args: True):
    """``call``, the n-th of which, of those that count, does only what ``before`` does of it."""
    count = 0

    def wrapper(*args, **kwargs):
        nonlocal count
        count += counts(*args)
        if count == n and counts(*args):
            before(*args)
            os.kill(os.getpid(), number)
        return call(*args, **kwargs)

    return wrapper


def half(checkpoint, file):
    buffer = io.BytesIO()
    save(checkpoint, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()


def spoilt(objective, n):
    """A VAE's objective that is NaN in the n-th step."""

    def wrapper(self, x, c=None):
        nan = float("nan") if self.training and self.trainer.global_step == n - 1 else 0.0
        return {name: value + nan for name, value in objective(self, x, c).items()}

    return wrapper


save = torch.save


def arm(moment, n, model=VAE):
    """See above; ``model`` is the class that is trained."""
    if moment == "save":
        torch.save = killed(torch.save, n, half)
    elif moment == "line":
        RunLogger.log_metrics = killed(RunLogger.log_metrics, n)
    elif moment == "batch":
        model.training_step = killed(model.training_step, n)
    elif moment == "epoch":
        first = lambda self, batch, batch_idx: batch_idx == 0 and self.current_epoch > 0  # noqa: E731
        model.training_step = killed(model.training_step, n, counts=first)
    elif moment == "validation":
        model.validation_step = killed(model.validation_step, n)
    elif moment.startswith("rank"):
        if os.environ.get("LOCAL_RANK") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            what = moment.partition("-")[2] or "SIGKILL"
            if what == "nan":
                model.objective = spoilt(model.objective, n)
            elif what == "sanity":  # its check, before training starts
                model.validation_step = killed(model.validation_step, 1, number=signal.SIGTERM)
            else:
                model.training_step = killed(model.training_step, n, number=getattr(signal, what))
    elif moment.startswith("SIG"):
        model.training_step = killed(model.training_step, n, number=getattr(signal, moment))


def main(moment, n, args, model=VAE):
    arm(moment, n, model)
    train.main(args)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
