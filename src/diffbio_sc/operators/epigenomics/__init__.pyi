from .chromatin_state import ChromatinStateAnnotator, ChromatinStateConfig
from .contextual.config import ContextualEpigenomicsConfig
from .contextual.loss import compute_contextual_epigenomics_loss
from .contextual.operator import ContextualEpigenomicsOperator
from .contextual_contract import validate_contextual_epigenomics_dataset
from .peak_caller import DifferentiablePeakCaller
from .peak_config import PeakCallerConfig

__all__ = [
    "ChromatinStateAnnotator",
    "ChromatinStateConfig",
    "ContextualEpigenomicsConfig",
    "ContextualEpigenomicsOperator",
    "DifferentiablePeakCaller",
    "PeakCallerConfig",
    "compute_contextual_epigenomics_loss",
    "validate_contextual_epigenomics_dataset",
]
