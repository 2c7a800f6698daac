from . import epigenomics, multiomics
from ._operator import FitReport, NotFittedWarning, Operator, OperatorConfig

__all__ = ["epigenomics", "multiomics", "FitReport", "NotFittedWarning", "Operator", "OperatorConfig"]
