"""Mathematics that several operators share, by the chapter of a textbook: arrays in, arrays out."""

from diffbio_sc import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
