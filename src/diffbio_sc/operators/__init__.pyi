from . import epigenomics, multiomics
from .contract import FitReport, NotFittedWarning, Operator, OperatorConfig

__all__ = ["epigenomics", "multiomics", "FitReport", "NotFittedWarning", "Operator", "OperatorConfig"]
