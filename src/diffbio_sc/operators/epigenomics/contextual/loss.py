"""Losses of the contextual sequence model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxtyping import Array, Float

if TYPE_CHECKING:
    from diffbio_sc.operators.epigenomics.contextual.operator import ContextualEpigenomicsOperator

__all__ = ["compute_contextual_epigenomics_loss"]


def compute_contextual_epigenomics_loss(
    operator: ContextualEpigenomicsOperator, data: Mapping[str, Any]
) -> dict[str, Float[Array, ""]]:
    """Return ``supervised``, ``chromatin_guidance`` and ``total``."""
    raise NotImplementedError
