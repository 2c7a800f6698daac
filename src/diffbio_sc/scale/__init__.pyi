from ._warm import warm

__all__ = ["warm"]
