"""Differentiable operators for single-cell, spatial and epigenomic data, in the scanpy style.

The import is lazy: ``import diffbio_sc as dbio`` loads neither JAX nor anndata; each part loads at first use.
"""

from importlib.metadata import PackageNotFoundError as _NotInstalled
from importlib.metadata import version as _installed_version

from diffbio_sc import _lazy

try:
    __version__ = _installed_version("diffbio-sc")
except _NotInstalled:  # sources on the path alone
    __version__ = "0+unknown"

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
__all__ = [*__all__, "__version__"]
