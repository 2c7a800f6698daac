from ._proportions import proportions

__all__ = ["proportions"]
