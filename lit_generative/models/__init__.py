"""One file per paper. Importing the package imports every model, so that class names alone are enough."""

import importlib
import pkgutil

from lit_generative.generative_model import GenerativeModel

__all__: list[str] = []
for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    for _name, _value in vars(_module).items():
        if isinstance(_value, type) and issubclass(_value, GenerativeModel) and _value.__module__ == _module.__name__:
            globals()[_name] = _value
            __all__ += [_name]
