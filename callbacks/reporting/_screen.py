"""Displays of progress, in a terminal or a file, and its speed."""

import math
import os
import sys
import time
from collections.abc import Callable, Sequence

from callbacks.reporting._lines import duration
from lit_generative.utils.tasks import Task, fraction

SMOOTHING = 3.0  # seconds over which the speed is averaged
PATIENCE = 3.0  # seconds after which a task within a run is shown


class Pace:
    """Speed and remaining time of a task of ``total`` units, ``done`` of which were done before.

    The caller counts `batches` since the speed was last measured.
    """

    def __init__(self, total: float, done: float = 0) -> None:
        self.total, self.first = total, done
        self.start = self.mark = time.monotonic()
        self.batches = 0
        self.speed = 0.0  # batches per second
        self.images = 0  # in a batch

    def pause(self) -> None:
        """Leave out of the speed the time since it was last measured."""
        self.mark, self.batches = time.monotonic(), 0

    def describe(self, done: float, images: int, at_most: float = math.inf) -> str:
        """Images per second, for batches of ``images``, and the time left, which is at most ``at_most`` seconds."""
        now = time.monotonic()
        self.images = max(self.images, images)  # the last batch may have fewer
        if self.batches:
            speed, weight = self.batches / (now - self.mark), 1 - math.exp((self.mark - now) / SMOOTHING)
            self.speed += (speed - self.speed) * (weight if self.speed else 1)
            self.pause()
        speed, parts = self.speed * self.images, []
        if speed:
            parts.append(f"{speed:>7{',.0f' if speed >= 10 else '.2g'}} images/s")
        if math.isfinite(min(self.total, at_most)):
            each = (now - self.start) / (done - self.first) if done > self.first else math.inf
            parts.append(f"{duration(min(max(self.total - done, 0) * each, at_most)):>7} left")
        return "  ".join(parts)


class Bar:
    """One line of a terminal, redrawn at most twice a second, below everything that is printed.

    Drawing it takes about 0.6 ms.
    """

    def __init__(self, title: str, fraction: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
        )
        # no thread; messages to standard error still go to a file if it is redirected
        self._bar = Progress(
            *columns,
            console=Console(),
            auto_refresh=False,
            transient=True,
            expand=True,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task, self._width, self._next = self._bar.add_task(title, total=1.0, text=""), 0, 0.0
        self._bar.update(self._task, completed=fraction)
        self._bar.start()

    def is_due(self, fraction: float) -> bool:
        return time.monotonic() >= self._next

    def show(self, title: str, fraction: float, text: str) -> None:
        if not self._bar.live.is_started:  # it made room for another
            self._bar.start()
        self._width = max(self._width, len(text))  # the bar keeps its length
        self._bar.update(self._task, description=title, completed=min(fraction, 1.0), text=text.rjust(self._width))
        self._bar.refresh()
        self._next = time.monotonic() + 0.5

    def close(self) -> None:
        self._bar.stop()


class Lines:
    """A line for every tenth of a task, and after 30 seconds without one."""

    def __init__(self, title: str, fraction: float) -> None:
        self._wait(fraction)

    def _wait(self, fraction: float) -> None:
        self._next, self._tenth = time.monotonic() + 30, math.floor(fraction * 10 + 1e-6) + 1

    def is_due(self, fraction: float) -> bool:
        return fraction * 10 + 1e-6 >= self._tenth or time.monotonic() >= self._next

    def show(self, title: str, fraction: float, text: str) -> None:
        print(f"{title}  {min(fraction, 1.0):4.0%}  {text}")
        self._wait(fraction)

    def close(self) -> None:
        pass


def screen(title: str, fraction: float) -> Bar | Lines:
    """A display that suits standard output, for a task of which ``fraction`` is done."""
    return Bar(title, fraction) if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else Lines(title, fraction)


class TaskScreen:
    """A display of loops (`tracked`) that last longer than a few seconds, with the time left.

    Args:
        make_room: Called before the first thing is shown.
    """

    def __init__(self, make_room: Callable[[], None] = lambda: None) -> None:
        self._make_room = make_room
        self._screen: Bar | Lines | None = None
        self._start: float | None = None  # of the outermost loop

    def __call__(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            return self.close()
        now, done = time.monotonic(), fraction(tasks)
        if self._start is None:
            self._start = now
        if now - self._start < PATIENCE:
            return
        if self._screen is None:
            self._make_room()
            self._screen = screen(tasks[0].name, done)
        elif not self._screen.is_due(done):
            return
        counts = [f"{task.done + 1:,}/{task.total:,}" for task in tasks[:1]]
        counts += [f"{task.name} {task.done + 1:,}/{task.total:,}" for task in tasks[1:]]
        left = (now - self._start) * (1 / done - 1) if done else math.inf
        self._screen.show(tasks[0].name, done, f"{'  '.join(counts)}  {duration(left):>7} left")

    def close(self) -> None:
        if self._screen is not None:
            self._screen.close()
        self._screen = self._start = None
