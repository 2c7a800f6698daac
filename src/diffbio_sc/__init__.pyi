from . import datasets, get, metrics, numerics, operators, pl, tl, training
from ._settings import settings

__version__: str

__all__ = ["datasets", "get", "metrics", "numerics", "operators", "pl", "tl", "training", "settings", "__version__"]
