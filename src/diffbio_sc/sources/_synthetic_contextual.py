"""Synthetic sequences, contexts and contact maps."""

from __future__ import annotations

import numpy as np

__all__ = ["build_synthetic_contextual_epigenomics_dataset"]


def build_synthetic_contextual_epigenomics_dataset(
    *,
    n_examples: int = 16,
    sequence_length: int = 64,
    num_tf_features: int = 4,
    target_semantics: str = "binary_peak_mask",
    num_output_classes: int = 1,
    rng: int | np.random.Generator = 0,
) -> dict[str, np.ndarray]:
    """Return ``sequence``, ``tf_context``, ``chromatin_contacts``, ``targets``."""
    raise NotImplementedError
