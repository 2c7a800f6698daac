from ._composition import composition

__all__ = ["composition"]
