from . import datasets, get, io, metrics, numerics, operators, pl, pp, tl, training
from ._citation import citation
from ._settings import settings

__version__: str

__all__ = [
    "datasets",
    "get",
    "io",
    "metrics",
    "numerics",
    "operators",
    "pl",
    "pp",
    "tl",
    "training",
    "settings",
    "citation",
    "__version__",
]
