"""Data larger than memory and clusters: what a session may set up before the work begins."""

from diffbio_sc import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
