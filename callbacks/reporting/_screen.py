"""Where progress is shown, a terminal or a file, and how fast it is."""

import math
import os
import sys
import time

from callbacks.reporting._lines import duration

SMOOTHING = 3.0  # seconds over which the speed that is shown is averaged


class Pace:
    """Speed and remaining time of a task of ``total`` units, ``done`` of which were done before.

    `batches` are those since the speed was last measured, and counted by the caller.
    """

    def __init__(self, total: float, done: float = 0) -> None:
        self.total, self.first = total, done
        self.start = self.mark = time.monotonic()
        self.batches = 0
        self.speed = 0.0  # batches a second
        self.images = 0  # of a batch

    def pause(self) -> None:
        """Leave out of the speed what happened since it was last measured."""
        self.mark, self.batches = time.monotonic(), 0

    def words(self, done: float, images: int, at_most: float = math.inf) -> str:
        """Images a second, if the latest batch had so many, and the time left: at most the seconds given."""
        now = time.monotonic()
        self.images = max(self.images, images)  # the last batch may have fewer
        if self.batches:
            speed, weight = self.batches / (now - self.mark), 1 - math.exp((self.mark - now) / SMOOTHING)
            self.speed += (speed - self.speed) * (weight if self.speed else 1)
            self.pause()
        speed, words = self.speed * self.images, []
        if speed:
            words.append(f"{speed:>7{',.0f' if speed >= 10 else '.2g'}} images/s")
        if math.isfinite(min(self.total, at_most)):
            each = (now - self.start) / (done - self.first) if done > self.first else math.inf
            words.append(f"{duration(min(max(self.total - done, 0) * each, at_most)):>7} left")
        return "  ".join(words)


class Bar:
    """One line of a terminal, drawn again at most twice a second; what is printed stands above it.

    Drawing it takes about 0.6 ms.
    """

    def __init__(self, place: str, share: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}", markup=False),
        )
        # no thread of its own; messages that go to a file stay there
        self._bar = Progress(
            *columns,
            console=Console(),
            auto_refresh=False,
            transient=True,
            expand=True,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task, self._width, self._next = self._bar.add_task(place, total=1.0, words=""), 0, 0.0
        self._bar.update(self._task, completed=share)
        self._bar.start()

    def is_due(self, share: float) -> bool:
        return time.monotonic() >= self._next

    def show(self, place: str, share: float, words: str) -> None:
        self._width = max(self._width, len(words))  # the bar keeps its length
        self._bar.update(self._task, description=place, completed=min(share, 1.0), words=words.rjust(self._width))
        self._bar.refresh()
        self._next = time.monotonic() + 0.5

    def close(self) -> None:
        self._bar.stop()


class Lines:
    """A line for every tenth of a task, and after 30 seconds without one."""

    def __init__(self, place: str, share: float) -> None:
        self._wait(share)

    def _wait(self, share: float) -> None:
        self._next, self._tenth = time.monotonic() + 30, math.floor(share * 10 + 1e-6) + 1

    def is_due(self, share: float) -> bool:
        return share * 10 + 1e-6 >= self._tenth or time.monotonic() >= self._next

    def show(self, place: str, share: float, words: str) -> None:
        print(f"{place}  {min(share, 1.0):4.0%}  {words}")
        self._wait(share)

    def close(self) -> None:
        pass


def screen(place: str, share: float) -> Bar | Lines:
    """What suits the standard output, for a task of which that share is done."""
    return Bar(place, share) if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else Lines(place, share)
