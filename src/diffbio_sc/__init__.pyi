from . import datasets, get, metrics, numerics, operators, pl, tl, training
from ._settings import settings

__version__: str
