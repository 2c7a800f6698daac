"""Benchmark suites of all systems, their store, and the guard that tells what got worse."""

from diffbio_sc import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
