"""Sources of operator-ready arrays, each checked against the contract of its operator."""

from diffbio_sc import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
