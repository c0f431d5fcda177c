"""What the command line shows of the messages of Lightning and torch."""

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning

# Warnings whose reader can do nothing about them
IGNORED = (
    # Lightning 2.6 under torch >= 2.12, several times a run
    ".*treespec, LeafSpec",
    ".*all_gather is deprecated",
    # only training has a ModelCheckpoint, and only training needs its state
    ".*callbacks used to create the checkpoint need to be provided.*ModelCheckpoint",
    # a model that steps by itself is saved after its step, as is meant
    "Using ModelCheckpoint with manual optimization",
    # weights of one channel have two layouts at once: the same memory under other strides
    "Grad strides do not match bucket view strides",
    # the heading names the device
    "[GT]PU available but not used",
    # data sets lie in memory, or are single files
    ".*does not have many workers",
    # lines of the curves go by the steps of the run, not of the epoch
    "The number of training batches .* is smaller than the logging interval",
    # networks that a model borrows, and those that are frozen
    "Found .* in eval mode at the start of training",
    # OnExceptionCheckpoint: Lightning looks for its file, and the heading names what was loaded
    "`.fit.ckpt_path=None.` was called without a model",
    # val_size 0
    "Total length of `list` across ranks is zero",
)
LIGHTNING = Path(lightning.__file__).parent


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
                    warnings.filterwarnings("ignore", pattern)
            yield
    finally:
        warnings.formatwarning = form
        for logger, (handlers, propagate) in before.items():
            logger.handlers, logger.propagate = handlers, propagate
