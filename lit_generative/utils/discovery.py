"""The classes that the files of a package define, so that a new class is a new file and nothing else."""

import importlib
import inspect
import pkgutil
from typing import TypeVar

T = TypeVar("T")


def classes_of(package: str, base: type[T]) -> dict[str, type[T]]:
    """Import the files of ``package`` but ``_*.py``, and return their concrete subclasses of ``base`` by name."""
    found: dict[str, type[T]] = {}
    for file in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not file.name.startswith("_"):
            module = importlib.import_module(f"{package}.{file.name}")
            own = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
            found |= {cls.__name__: cls for cls in own if issubclass(cls, base) and not inspect.isabstract(cls)}
    return found
