from . import epigenomics, losses, multiomics
from .contract import FitReport, NotFittedWarning, Operator, OperatorConfig
from .pipeline import Pipeline, PipelineConfig

__all__ = [
    "epigenomics",
    "losses",
    "multiomics",
    "FitReport",
    "NotFittedWarning",
    "Operator",
    "OperatorConfig",
    "Pipeline",
    "PipelineConfig",
]
