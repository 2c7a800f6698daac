"""Tools: one function a method, writing its results into the AnnData object."""

from diffbio_sc import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
