"""Callbacks for any model that follows their protocol, one per file.

Importing the package imports every callback, so that class names alone are enough.
"""

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from lit_generative.utils.discovery import classes_of

_callbacks: dict[str, Any] = {}
for _room in ("evaluation", "reporting", "training", "visualization"):
    _callbacks |= classes_of(f"{__name__}.{_room}", Callback)
globals().update(_callbacks)
__all__ = [*_callbacks]

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[Any]: ...
