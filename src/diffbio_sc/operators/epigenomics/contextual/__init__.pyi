from .config import ContextualEpigenomicsConfig
from .loss import compute_contextual_epigenomics_loss
from .operator import ContextualEpigenomicsOperator

__all__ = [
    "ContextualEpigenomicsConfig",
    "ContextualEpigenomicsOperator",
    "compute_contextual_epigenomics_loss",
]
