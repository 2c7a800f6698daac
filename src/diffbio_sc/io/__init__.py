"""Files of intervals, coverage and peaks: readers and writers."""

from diffbio_sc import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
