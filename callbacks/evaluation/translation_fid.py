"""Fréchet distance between translations and real target images."""

from typing import Any

from torch import Tensor

from callbacks.evaluation.reconstruction_fid import ReconstructionFID
from lit_generative.protocols import Translates


class TranslationFID(ReconstructionFID):
    """Log ``fid_translations_<extractor>`` and its KID: all translations of a test against real targets."""

    protocol = Translates
    subject, noun = "translations_", "translations"

    def images(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        return model.translate(c)
