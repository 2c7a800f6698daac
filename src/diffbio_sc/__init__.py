"""Differentiable operators for single-cell, spatial and epigenomic data, in the scanpy style.

The import is lazy: ``import diffbio_sc as dbio`` loads neither JAX nor anndata; each part loads at first use.
"""

from diffbio_sc import _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
__all__ = [*__all__, "__version__"]
