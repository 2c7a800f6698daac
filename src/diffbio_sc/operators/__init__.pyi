from . import multiomics
from ._operator import FitReport, NotFittedWarning, Operator, OperatorConfig

__all__ = ["multiomics", "FitReport", "NotFittedWarning", "Operator", "OperatorConfig"]
