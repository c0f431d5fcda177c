"""One file per paper. Importing the package imports every model, so that class names alone are enough."""

from lit_generative.generative_model import GenerativeModel
from lit_generative.utils.discovery import classes_of

_models = classes_of(__name__, GenerativeModel)
globals().update(_models)
__all__ = [*_models]
