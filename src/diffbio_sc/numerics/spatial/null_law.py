"""Null law of a quadratic form of counts' residuals over their sum of squares."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from diffbio_sc.numerics.spatial.quadratic_forms import log_tail, two_point_spectrum


class LawOfGaussian(NamedTuple):
    """First three cumulants of a quadratic form of Gaussian residuals, and its spectrum: eigenvalues, multiplicities.

    Without a spectrum (None) two eigenvalues with these cumulants stand for it, the lower of them ``-bottom``.
    """

    mean: float
    second: float
    third: float
    bottom: float
    spectrum: tuple[np.ndarray, np.ndarray] | None


class NullLaw:
    """Law of T over the sum of squares at one scale, for each gene: of Gaussian residuals, corrected for discreteness.

    Parameters
    ----------
    gaussian
        Law of T for Gaussian residuals.
    trace
        Expected sum of squares.
    extra_third, extra_fourth
        What discreteness adds to the cumulants of each gene (to the fourth in units of the squared second).
    discrete
        Genes to correct.
    """

    def __init__(
        self,
        gaussian: LawOfGaussian,
        trace: float,
        extra_third: Float[np.ndarray, " genes"],
        extra_fourth: Float[np.ndarray, " genes"],
        discrete: Bool[np.ndarray, " genes"],
    ):
        mean, second, third, bottom, spectrum = gaussian
        one = np.ones(1)
        self._simple = two_point_spectrum(mean * one, second * one, third * one, bottom)
        self._trace, self._discrete = trace, discrete
        self._spectrum = None if spectrum is None else (spectrum[0][None], spectrum[1][None])
        self._corrected = None
        if discrete.any():
            self._corrected = _with_discreteness(
                mean, second, third, extra_third[discrete], extra_fourth[discrete], bottom
            )

    def log_tail(self, ratio: Float[np.ndarray, " genes"], lower: bool | np.ndarray = False) -> np.ndarray:
        """Log probability to exceed ``ratio``, or (``lower``, of all genes or of each) to fall below it."""
        lower = np.broadcast_to(lower, ratio.shape)
        some, below = ratio[self._discrete], lower[self._discrete]
        if self._spectrum is None:
            tail = np.zeros(len(ratio))
            tail[~self._discrete] = self._log_tail(self._simple, ratio[~self._discrete], lower[~self._discrete])
        else:
            tail = self._log_tail(self._spectrum, ratio, lower)
            tail[self._discrete] -= self._log_tail(self._simple, some, below)
        if self._corrected is not None:
            tail[self._discrete] += self._log_tail(self._corrected, some, below)
        return np.minimum(tail, 0.0)

    def _log_tail(self, spectrum, ratio: np.ndarray, lower: np.ndarray) -> np.ndarray:
        values, counts = (np.broadcast_to(part, (len(ratio), part.shape[1])) for part in spectrum)
        values, counts = _of_ratio(values, counts, ratio, self._trace)
        return log_tail(np.where(lower[:, None], -values, values), counts)


def _of_ratio(eigenvalues, multiplicity, ratio, trace):
    """Spectrum of the form minus ``ratio`` times the sum of squares; dimensions that no eigenvalue covers are at 0."""
    missing = np.maximum(trace - multiplicity.sum(1), 0.0)
    values = np.column_stack([eigenvalues, np.zeros(len(eigenvalues))]) - ratio[:, None]
    return values, np.column_stack([multiplicity, missing])


def _with_discreteness(mean, second, third, extra_third, extra_fourth, lower):
    """Spectrum with the third and fourth cumulants that discrete counts add.

    The fourth goes into a symmetric pair of eigenvalues that takes the share rho of the variance.
    """
    share = np.minimum(0.5, np.sqrt(extra_fourth / 12.0))
    size = np.ones(len(share))
    values, counts = two_point_spectrum(mean * size, second * (1.0 - share), third + extra_third, lower)
    pair = np.sqrt(np.where(share > 0, extra_fourth * second / (24.0 * np.where(share > 0, share, 1.0)), 1.0))
    number = share * second / (4.0 * pair**2)
    return np.column_stack([pair, -pair, values]), np.column_stack([number, number, counts])
