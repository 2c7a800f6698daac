from . import artifact_errors, provenance
from ._contextual import ContextualEpigenomicsSource
from ._synthetic_contextual import build_synthetic_contextual_epigenomics_dataset
from .multiomics_embeddings import MultiOmicsEmbeddingSource
from .seqfish import SeqFISHConfig, SeqFISHSource

__all__ = [
    "artifact_errors",
    "provenance",
    "ContextualEpigenomicsSource",
    "build_synthetic_contextual_epigenomics_dataset",
    "MultiOmicsEmbeddingSource",
    "SeqFISHConfig",
    "SeqFISHSource",
]
