"""What the command line shows of the messages of Lightning and torch."""

import io
import logging
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import ArgumentError
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_generative import __version__
from lit_generative.checkpoints import record
from lit_generative.errors import UserError
from lit_generative.sampling import no_memory

# Warnings whose reader can do nothing about them
IGNORED = (
    # Lightning 2.6 under torch >= 2.12, several times a run
    ".*treespec, LeafSpec",
    ".*all_gather is deprecated",
    # names of jsonargparse that its newest releases replace: Lightning's, and ours while the older ones are supported
    ".*was deprecated in v4",
    "By default only one JsonargparseDeprecationWarning",
    # only training has a ModelCheckpoint, and only training needs its state
    ".*callbacks used to create the checkpoint need to be provided.*ModelCheckpoint",
    # a model that steps by itself is saved after its step, as is meant
    "Using ModelCheckpoint with manual optimization",
    # weights of one channel have two layouts at once: the same memory under other strides
    "Grad strides do not match bucket view strides",
    # the heading names the device
    "[GT]PU available but not used",
    # data sets are in memory, or single files
    ".*does not have many workers",
    # lines of the curves go by the steps of the run, not of the epoch
    "The number of training batches .* is smaller than the logging interval",
    # networks that a model borrows, and those that are frozen
    "Found .* in eval mode at the start of training",
    # OnExceptionCheckpoint: Lightning looks for its file, and the heading names what was loaded
    "`.fit.ckpt_path=None.` was called without a model",
    # a run that begins with --ckpt_path has a folder of its own, and chooses its best anew
    "The dirpath has changed from",
    # val_size 0
    "Total length of `list` across ranks is zero",
)
# How the parser complains of names of before, and what to write instead; CHANGELOG.md has them all.
RENAMED = {
    **{rf"Option '{before}' is not accepted": f"{before} is now {now}" for before, now in record.RENAMED.items()},
    **{rf"Got value: {before} ?": f"{before} is now {now}" for (_, before), now in record.RENAMED_VALUES.items()},
    r"Option 'init_from' is not accepted": "write --init_from in place of --model.init_from",
    r"\bFilm\b": "Film is now TrainingAnimation",
    r"\bNoisingFilm\b": "NoisingFilm is now NoisingAnimation",
    r"\bDenoisingFilm\b": "DenoisingFilm is now DenoisingAnimation",
}
LIGHTNING = Path(lightning.__file__).parent
CHECKED_BY = (LIGHTNING, Path(torch.optim.__file__).parent)  # where errors about the user's arguments are raised


class _Stderr(logging.Handler):
    """Write messages to what is the standard error stream at that time: a progress bar draws itself below them."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def wanted(record: logging.LogRecord) -> bool:
    """Whether a message is a warning, or comes from this package, its user, or a callback that the user chose."""
    path = Path(record.pathname)
    chosen = LIGHTNING / "pytorch" / "callbacks" in path.parents
    return record.levelno >= logging.WARNING or chosen or LIGHTNING not in path.parents


def one_line(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning without the place in the code, which ``--debug`` shows."""
    return f"warning: {' '.join(str(message).split())}\n"


def readable(error: Exception) -> str | None:
    """An error as one line, if it is about what the user gave or asked for; None for all others, which are bugs."""
    if isinstance(error, RuntimeError) and "by peer" in str(error):  # which gloo says of connections
        return "another process of this run has ended: it said why above, or was killed, as for want of memory"
    if isinstance(error, RuntimeError) and no_memory(error):
        return str(error).splitlines()[0]
    place = traceback.extract_tb(error.__traceback__)[-1]
    checked = (place.line or "").startswith("raise ") and any(p in Path(place.filename).parents for p in CHECKED_BY)
    mistakes = (ArgumentError, MisconfigurationException, UserError, OSError)
    if not isinstance(error, (*mistakes, ImportError, RuntimeError, TypeError, ValueError) if checked else mistakes):
        return None
    # without the parser's account of the types that it tried in vain
    noise = ("Does not validate against", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value")
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(noise))
    if renamed := [now for before, now in RENAMED.items() if re.search(before, text)]:
        text += f": {', '.join(renamed)}, see CHANGELOG.md"
    of_lists = r"Expected a <class '(collections\.abc\.Sequence|list|tuple)'>\. Got value: ([^\s\[]+)"
    return re.sub(of_lists, r"Expected a list, as in [\2]. Got value: \2", text)


def please_report(args: list[str]) -> str:
    """What follows the traceback of a bug."""
    return (
        "This looks like a bug, not a mistake of yours. Unless the traceback ends in code of your own, please report "
        f"it with lit-generative {__version__}, torch {torch.__version__}, Lightning {lightning.__version__} and the "
        f"command: {shlex.join(['train.py', *args])}"
    )


@contextmanager
def calm(debug: bool) -> Iterator[None]:
    """Leave out Lightning's account of what it does, and warnings that nobody can act on; with ``debug`` nothing.

    What is printed comes out line by line: a file is read while it grows, and may hold both streams.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    parent, *children = (logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric"))
    before = {logger: (logger.handlers, logger.propagate) for logger in (parent, *children)}
    handler, form = _Stderr(), warnings.formatwarning
    try:
        with warnings.catch_warnings():
            parent.handlers = [handler]
            for logger in children:
                logger.handlers, logger.propagate = [], True
            if not debug:
                handler.addFilter(wanted)
                warnings.formatwarning = one_line
                for pattern in IGNORED:
                    warnings.filterwarnings("ignore", rf"(?s)\s*{pattern}")
            yield
    finally:
        warnings.formatwarning = form
        for logger, (handlers, propagate) in before.items():
            logger.handlers, logger.propagate = handlers, propagate
