"""Mathematics that several operators share, by the chapter of a textbook: arrays in, arrays out."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
