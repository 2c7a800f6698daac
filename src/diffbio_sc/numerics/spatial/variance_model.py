"""Variance of residuals that changes with covariates."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_LARGEST_CHANGE = 16.0  # of a gene's variance between spots, up and down


class VarianceModel:
    """Variances of each gene's residuals, linear in covariates.

    Of a gene of one cell type all variance lies where that type is. Counts of a spot are sums over its cells, and so is
    their variance: it is linear in the composition, as the mean is.

    Parameters
    ----------
    covariates
        Of each spot; columns that others span are left out.
    """

    def __init__(self, covariates: Float[np.ndarray, "spots columns"]):
        columns = np.column_stack([np.ones(len(covariates)), covariates / np.abs(covariates).max(0).clip(1e-300)])
        basis, sizes, _ = np.linalg.svd(columns, full_matrices=False)
        self._design = basis[:, sizes > 1e-6 * sizes[0]].astype(np.float32)

    def __call__(
        self, squared: Float[np.ndarray, "genes spots"], expected: Float[np.ndarray, " spots"]
    ) -> Float[np.ndarray, "genes spots"]:
        """Fit variances to squared residuals whose variances are expected to be proportional to ``expected``.

        Their sum is that of ``expected``.
        """
        design = self._design
        inverse = np.linalg.inv(design.T @ (expected[:, None] * design)).astype(np.float32)
        relative = ((squared @ design) @ inverse) @ design.T  # weighted least squares of squared / expected
        relative *= expected.sum() / np.maximum(squared.sum(1, dtype=np.float64), 1e-12)[:, None]
        variances = np.clip(relative, 1.0 / _LARGEST_CHANGE, _LARGEST_CHANGE) * expected
        return variances * (expected.sum() / variances.sum(1, keepdims=True))
