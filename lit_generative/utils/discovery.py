"""The classes that the files of a package define, so that a new class is a new file and nothing else."""

import importlib
import pkgutil
from typing import TypeVar

T = TypeVar("T")


def classes_of(package: str, base: type[T]) -> dict[str, type[T]]:
    """Import the files of ``package``, and return their subclasses of ``base`` by name; ``_*.py`` are left out."""
    found: dict[str, type[T]] = {}
    for file in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not file.name.startswith("_"):
            module = importlib.import_module(f"{package}.{file.name}")
            classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
            found |= {cls.__name__: cls for cls in classes if cls.__module__ == module.__name__}
    return found
