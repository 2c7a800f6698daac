from . import benchmarks, datasets, get, io, metrics, numerics, operators, pl, pp, scale, sources, tl, training
from ._citation import citation
from ._settings import settings

__version__: str

__all__ = [
    "benchmarks",
    "datasets",
    "get",
    "io",
    "metrics",
    "numerics",
    "operators",
    "pl",
    "pp",
    "scale",
    "sources",
    "tl",
    "training",
    "settings",
    "citation",
    "__version__",
]
