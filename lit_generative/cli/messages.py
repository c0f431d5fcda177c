"""Which messages of Lightning and torch the command line shows, and how it words errors."""

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

# warnings that a user can do nothing about
IGNORED = (
    # Lightning 2.6 under torch >= 2.12, several times a run
    ".*treespec, LeafSpec",
    ".*all_gather is deprecated",
    # names that new releases of jsonargparse deprecate: used by Lightning, and by us while we support older releases
    ".*was deprecated in v4",
    "By default only one JsonargparseDeprecationWarning",
    # the state of ModelCheckpoint, which only training has and needs
    ".*callbacks used to create the checkpoint need to be provided.*ModelCheckpoint",
    # models with manual optimization are saved after their step, as intended
    "Using ModelCheckpoint with manual optimization",
    # one-channel weights fit two memory formats at once: the same memory, other strides
    "Grad strides do not match bucket view strides",
    # the heading names the device
    "[GT]PU available but not used",
    # data sets are in memory or single files, and need few workers
    ".*does not have many workers",
    # curves are logged by the run's steps, not the epoch's
    "The number of training batches .* is smaller than the logging interval",
    # pretrained or frozen networks inside a model
    "Found .* in eval mode at the start of training",
    # Lightning looks for a file of OnExceptionCheckpoint; the heading names what was loaded
    "`.fit.ckpt_path=None.` was called without a model",
    # a run started with --ckpt_path has its own folder and its own best checkpoint
    "The dirpath has changed from",
    # val_size 0
    "Total length of `list` across ranks is zero",
)
# the parser's errors about former names, and what to write instead; CHANGELOG.md lists all of them
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
    """Write to the current ``sys.stderr``, which a progress bar replaces so that it can draw itself below."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def is_shown(record: logging.LogRecord) -> bool:
    """Whether a message is a warning or comes from outside Lightning, or from one of its callbacks."""
    path = Path(record.pathname)
    from_callback = LIGHTNING / "pytorch" / "callbacks" in path.parents
    return record.levelno >= logging.WARNING or from_callback or LIGHTNING not in path.parents


def format_warning(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning in one line, without its place in the code, which ``--debug`` shows."""
    return f"warning: {' '.join(str(message).split())}\n"


def user_message(error: Exception) -> str | None:
    """The error in one line if it is a user's mistake or the machine's failure; None if it is a bug."""
    if isinstance(error, RuntimeError) and "by peer" in str(error):  # from gloo, "Connection closed by peer"
        return "another process of this run has ended: its error is above, or it was killed, perhaps for lack of memory"
    if isinstance(error, RuntimeError) and no_memory(error):
        return str(error).splitlines()[0]
    place = traceback.extract_tb(error.__traceback__)[-1]
    checked = (place.line or "").startswith("raise ") and any(p in Path(place.filename).parents for p in CHECKED_BY)
    mistakes = (ArgumentError, MisconfigurationException, UserError, OSError)
    if not isinstance(error, (*mistakes, ImportError, RuntimeError, TypeError, ValueError) if checked else mistakes):
        return None
    # leave out the parser's list of the types that it tried
    noise = ("Does not validate against", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value")
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(noise))
    if renamed := [now for before, now in RENAMED.items() if re.search(before, text)]:
        text += f": {', '.join(renamed)}, see CHANGELOG.md"
    not_a_list = r"Expected a <class '(collections\.abc\.Sequence|list|tuple)'>\. Got value: ([^\s\[]+)"
    return re.sub(not_a_list, r"Expected a list, as in [\2]. Got value: \2", text)


def bug_report(args: list[str]) -> str:
    """The request to report a bug, which follows its traceback."""
    return (
        "This looks like a bug, not a mistake of yours. Unless the traceback ends in code of your own, please report "
        f"it with lit-generative {__version__}, torch {torch.__version__}, Lightning {lightning.__version__} and the "
        f"command: {shlex.join(['train.py', *args])}"
    )


@contextmanager
def concise_output(debug: bool) -> Iterator[None]:
    """Hide Lightning's messages about its progress, and warnings that a user can do nothing about, unless ``debug``.

    Standard output is flushed after every line, as it may go to a file that is read meanwhile or shared with stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    parent, *children = (logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric"))
    saved = {logger: (logger.handlers, logger.propagate) for logger in (parent, *children)}
    handler, formatwarning = _Stderr(), warnings.formatwarning
    try:
        with warnings.catch_warnings():
            parent.handlers = [handler]
            for logger in children:
                logger.handlers, logger.propagate = [], True
            if not debug:
                handler.addFilter(is_shown)
                warnings.formatwarning = format_warning
                for pattern in IGNORED:
                    warnings.filterwarnings("ignore", rf"(?s)\s*{pattern}")
            yield
    finally:
        warnings.formatwarning = formatwarning
        for logger, (handlers, propagate) in saved.items():
            logger.handlers, logger.propagate = handlers, propagate
