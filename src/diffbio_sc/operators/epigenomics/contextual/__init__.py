"""Contextual sequence model: sequence, transcription factors of a cell type, and chromatin contacts."""

from diffbio_sc import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
