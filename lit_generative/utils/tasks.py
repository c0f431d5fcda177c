"""Long loops that a display can follow, whatever they are part of."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item", covariant=True)


class Sized(Protocol[Item]):
    """What can be counted and iterated over."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...


class Task:
    """A loop that is running: its ``name``, and how many of its ``total`` passes are ``done``."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0


Display = Callable[[Sequence[Task]], None]
_running: list[Task] = []  # outermost first
_display: Display | None = None


def show_tasks(display: Display | None) -> None:
    """Have ``display`` called with the loops that are running, outermost first, whenever that changes; None: nobody.

    It is called with an empty sequence when the outermost has ended. Loops that an error ended are forgotten.
    """
    global _display
    _display = display
    _running.clear()


def tracked(items: Sized[Item], name: str) -> Iterator[Item]:
    """The items, for a loop that a display names ``name``; loops may lie within each other."""
    task = Task(name, len(items))
    _running.append(task)
    try:
        for item in items:
            if _display is not None:
                _display(_running)
            yield item
            task.done += 1
    finally:
        if task in _running:
            _running.remove(task)
        if _display is not None:
            _display(_running)


def fraction(tasks: Sequence[Task]) -> float:
    """How much of the first of ``tasks`` is done, each of which is a pass of the one before."""
    inner = 0.0
    for task in reversed(tasks):
        inner = (task.done + inner) / task.total
    return inner
