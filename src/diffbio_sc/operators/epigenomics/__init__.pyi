from .binarizer import MarkBinarizer, MarkBinarizerConfig
from .chromatin_state import ChromatinStateAnnotator, ChromatinStateConfig
from .contextual import (
    ContextualEpigenomicsConfig,
    ContextualEpigenomicsOperator,
    compute_contextual_epigenomics_loss,
)
from .contextual_contract import validate_contextual_epigenomics_dataset
from .peak_caller import DifferentiablePeakCaller
from .peak_config import PeakCallerConfig
from .smoother import CoverageSmoother, CoverageSmootherConfig

__all__ = [
    "ChromatinStateAnnotator",
    "ChromatinStateConfig",
    "ContextualEpigenomicsConfig",
    "ContextualEpigenomicsOperator",
    "CoverageSmoother",
    "CoverageSmootherConfig",
    "DifferentiablePeakCaller",
    "MarkBinarizer",
    "MarkBinarizerConfig",
    "PeakCallerConfig",
    "compute_contextual_epigenomics_loss",
    "validate_contextual_epigenomics_dataset",
]
