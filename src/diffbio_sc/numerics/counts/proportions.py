"""Proportions of cell types from regression coefficients, and their standard deviations."""

from __future__ import annotations

from jaxtyping import Array, Float

# Errors of the signatures are shared by all spots and no single spot shows them. Without this factor the 90 % intervals
# of present types cover 80 to 86 % on simulated spots (benchmarks/deconvolution.py, calibration).
SIGNATURE_INFLATION = 1.25**2


def proportion_deviation(
    coefficients: Float[Array, "spots types"], variance: Float[Array, "spots types"]
) -> Float[Array, "spots types"]:
    """Standard deviation of ``c_k / sum(c)`` from the variances of c, to first order."""
    total = coefficients.sum(-1, keepdims=True)
    share = coefficients / total
    others = variance.sum(-1, keepdims=True) - variance
    return ((1.0 - share) ** 2 * variance + share**2 * others) ** 0.5 / total
