"""One file per paper. Importing the package imports every model, so that class names alone are enough."""

import importlib
import inspect
import pkgutil

from lit_generative.generative_model import GenerativeModel

__all__: list[str] = []
for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    for _name, _value in vars(_module).items():
        _own = isinstance(_value, type) and _value.__module__ == _module.__name__
        if _own and issubclass(_value, GenerativeModel) and not inspect.isabstract(_value):
            globals()[_name] = _value
            __all__ += [_name]
