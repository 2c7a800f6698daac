from . import multiomics
from ._operator import FitReport, NotFittedWarning, Operator, OperatorConfig
