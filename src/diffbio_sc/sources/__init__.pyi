from ._contextual import ContextualEpigenomicsSource
from ._synthetic_contextual import build_synthetic_contextual_epigenomics_dataset

__all__ = ["ContextualEpigenomicsSource", "build_synthetic_contextual_epigenomics_dataset"]
