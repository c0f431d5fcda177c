"""Formats of a run's lines in the terminal: numbers, times, and the position in training."""

import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping

from lightning.pytorch import Trainer

INDENT = 17  # width of the names of facts in the first and last lines of a run


def fact(name: str, text: str) -> str:
    """``name`` and ``text`` in two columns."""
    return wrapped(f"{name:<{INDENT}}", text.split(" "), " ")


def numbers(values: Mapping[str, float]) -> list[str]:
    """Each name with its value."""
    return [f"{name} {number(value):>7}" for name, value in values.items()]


def number(value: float) -> str:
    """Five digits, at most four of them decimals: 192.60, 0.3544, 20517; very small and very large ones as 3.21e-05."""
    size = abs(value)
    if not math.isfinite(size) or size == 0:
        return f"{value:.0f}"
    if size < 1e-3 or size >= 1e6:
        return f"{value:.2e}"
    return f"{value:.{max(0, min(4, 5 - len(str(int(size)))))}f}"


def duration(seconds: float) -> str:
    """12:34, or 1:02:03 from an hour on; dashes if it is infinite."""
    if not math.isfinite(seconds):
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def wrapped(start: str, parts: Iterable[str], gap: str) -> str:
    """``start`` and parts on one line; in a narrower terminal on several, each indented below the first part."""
    line = start + gap.join(part.replace(" ", "\xa0") for part in parts)
    if sys.stdout.isatty():
        width, hang = max(40, shutil.get_terminal_size().columns), " " * len(start)
        line = textwrap.fill(line, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
    return line.replace("\xa0", " ")


def total_steps(trainer: Trainer) -> float:
    """Steps of the whole run, including those before it was resumed; infinite if its length is not known."""
    per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    limits = [float(trainer.max_steps)] if trainer.max_steps != -1 else []
    if trainer.max_epochs != -1 and math.isfinite(per_epoch):
        limits.append(float((trainer.max_epochs or 0) * math.ceil(per_epoch)))
    return min(limits, default=math.inf)


def position(trainer: Trainer) -> str:
    """The position in training: ``epoch  3/20``, or ``step 1,200/5,000`` in a run whose length is in steps."""
    steps, epochs = trainer.max_steps, trainer.max_epochs or 0
    if steps != -1 and steps == total_steps(trainer):
        return f"step {trainer.global_step:>{len(f'{steps:,}')},}/{steps:,}"
    epoch = trainer.current_epoch + 1
    return f"epoch {epoch:>{len(str(epochs))}}/{epochs}" if epochs > 0 else f"epoch {epoch}"
