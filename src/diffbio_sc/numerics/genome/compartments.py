r"""Compartments: the leading eigenvectors of weighted observed over expected contacts, without a dense matrix.

With observed counts O, expected counts L_ij = P(d) b_i b_j and weights W = L^gamma, the vectors maximise
x' (W * (O / L - 1)) x against x' diag(W 1) x. The matrix W * (O / L - 1) = O L^(gamma - 1) - L^gamma is sparse minus
diag(b^gamma) Toeplitz(P^gamma) diag(b^gamma), so that a product with it costs the contacts and a Fourier transform:
nothing is ever n x n, which POSSUMM (Gu et al. 2021, bioRxiv 2021.10.03.462599) showed to be possible. gamma = 0 is the
plain eigenvector of O / L - 1, which noise of far pairs takes over on shallow maps; gamma = 1 weighs as Poisson counts
do, and neighbourhoods of high counts take over. Counts are winsorised at what noise allows, never O / L itself, of
which on a shallow map a single contact is an outlier.

:mod:`diffbio_sc.numerics.genome.compartments_jax` is the differentiable twin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.fft
from numba import njit
from scipy.linalg import solveh_banded
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from diffbio_sc.numerics.genome.pixels import PixelRows

GAMMA = 0.5
WINSOR_DEVIATIONS, WINSOR_DISPERSION = 2.0, 0.05
FEWEST_BINS = 10
FEWEST_TO_SHRINK = 40
_LAGS = (1, 2, 3, 5, 8)


class EigenPairs(NamedTuple):
    """Leading eigenvectors.

    Attributes
    ----------
    values
        Eigenvalues, falling: shares of the weight that the vector explains, at most about 1.
    vectors
        (k, bins), NaN for bins left out; the root mean square of each, by weight, is 1.
    noise
        (k, bins): variance of each entry by counting noise, the other entries given.
    """

    values: np.ndarray
    vectors: np.ndarray
    noise: np.ndarray


def _weighted_rows(
    rows: PixelRows, decay: np.ndarray, exposure: np.ndarray, gamma: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of the sparse part, min(O, limit) L^(gamma - 1), in the order of the rows: starts, columns, values."""
    # A power of the product is the product of powers: none is taken for each pixel.
    decay_power, exposure_power = (
        np.where(part > 0, np.where(part > 0, part, 1.0) ** (gamma - 1.0), 0.0) for part in (decay, exposure)
    )
    total = int((rows.end - rows.begin).sum())
    starts = np.empty(rows.n_rows + 1, np.int64)
    columns, values = np.empty(total, np.int32), np.empty(total, np.float32)
    filled = _weighted_values(
        *rows[:5], decay, exposure, decay_power, exposure_power, WINSOR_DEVIATIONS, WINSOR_DISPERSION,
        starts, columns, values,
    )  # fmt: skip
    return starts, columns[:filled], values[:filled]


@njit(cache=True, nogil=True)
def _weighted_values(
    begin, end, indices, data, offset, decay, exposure, decay_power, exposure_power, deviations, dispersion,
    starts, columns, values,
):  # fmt: skip
    at = 0
    for i in range(len(begin)):
        starts[i] = at
        if exposure[i] <= 0:
            continue
        for k in range(begin[i], end[i]):
            j = indices[k] - offset
            expected = decay[j - i] * exposure[i] * exposure[j]
            if expected > 0:
                limit = expected + deviations * math.sqrt(expected + dispersion * expected * expected) + 1.0
                values[at] = min(data[k], limit) * (decay_power[j - i] * exposure_power[i] * exposure_power[j])
                columns[at] = j
                at += 1
    starts[len(begin)] = at
    return at


def _sparse_product(starts: np.ndarray, columns: np.ndarray, values: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Product of the symmetric matrix of which these are the upper rows."""
    result = np.zeros(len(vector))
    _add_product(starts, columns, values, vector, result)
    return result


@njit(cache=True, nogil=True)
def _add_product(starts, columns, values, vector, result):
    for i in range(len(starts) - 1):
        own = vector[i]
        total = 0.0
        for k in range(starts[i], starts[i + 1]):
            total += values[k] * vector[columns[k]]
            result[columns[k]] += values[k] * own
        result[i] += total


class Toeplitz:
    """Product with the symmetric matrix whose entry at (i, j) depends on the distance of i and j alone."""

    def __init__(self, by_distance: np.ndarray):
        self.size = len(by_distance)
        self.padded = scipy.fft.next_fast_len(2 * self.size, real=True)
        column = np.zeros(self.padded)
        column[: self.size] = by_distance
        column[self.padded - self.size + 1 :] += by_distance[:0:-1]
        self.spectrum = scipy.fft.rfft(column)

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        """Return the product."""
        return scipy.fft.irfft(scipy.fft.rfft(vector, self.padded) * self.spectrum, self.padded)[: self.size]


def cis_eigenvectors(
    rows: PixelRows, decay: np.ndarray, weights: np.ndarray, nearest: int, count: int, gamma: float = GAMMA
) -> EigenPairs:
    """Eigenvectors of one region.

    Parameters
    ----------
    rows
        Its contacts, those nearer than ``nearest`` left out.
    decay
        P at each distance.
    weights
        Balancing weights, NaN for bins left out.
    nearest
        Smallest distance in bins.
    count
        Number of vectors.
    gamma
        Exponent of the weights.
    """
    used = np.isfinite(weights)
    exposure = np.where(used, 1.0 / np.where(used, weights, 1.0), 0.0)
    size = len(weights)
    distance = np.arange(size)
    far = np.where((distance >= nearest) & np.isfinite(decay[:size]), decay[:size], 0.0)
    powers = np.where(far > 0, np.where(far > 0, far, 1.0) ** gamma, 0.0)
    raised = np.where(used, np.where(used, exposure, 1.0) ** gamma, 0.0)
    starts, columns, values = _weighted_rows(rows, far, exposure, gamma)
    toeplitz = Toeplitz(powers)
    square_powers = Toeplitz(np.where(far > 0, np.where(far > 0, far, 1.0) ** (2.0 * gamma - 1.0), 0.0))
    square_raised = np.where(used, np.where(used, exposure, 1.0) ** (2.0 * gamma - 1.0), 0.0)

    def noise(vector: np.ndarray) -> np.ndarray:
        return square_raised * square_powers(square_raised * vector**2)

    def expected(vector: np.ndarray) -> np.ndarray:
        return raised * toeplitz(raised * vector)

    def product(vector: np.ndarray) -> np.ndarray:
        return _sparse_product(starts, columns, values, vector) - expected(vector)

    return _leading(product, noise, expected(np.ones(size)), used, count)


def trans_eigenvectors(
    rows: PixelRows, chrom: np.ndarray, weights: np.ndarray, count: int, gamma: float = GAMMA
) -> EigenPairs:
    """Eigenvectors of the contacts between chromosomes, of which the expectation does not depend on distance."""
    used = np.isfinite(weights)
    exposure = np.where(used, 1.0 / np.where(used, weights, 1.0), 0.0)
    size = len(weights)
    pairs = exposure.sum() ** 2 - (np.bincount(chrom, exposure) ** 2).sum()
    counts = 2.0 * _total_used(*rows[:5], used)
    level = counts / pairs if pairs > 0 else 0.0
    raised = np.where(used, (exposure * np.sqrt(level)) ** gamma, 0.0)
    starts, columns, values = _weighted_rows(rows, np.full(size, level), exposure, gamma)

    def between(factor: np.ndarray, vector: np.ndarray) -> np.ndarray:
        own = factor * vector
        return factor * (own.sum() - np.bincount(chrom, own, chrom.max() + 1)[chrom])

    def expected(vector: np.ndarray) -> np.ndarray:
        return between(raised, vector)

    square_raised = np.where(used, np.where(used, exposure * np.sqrt(level), 1.0) ** (2.0 * gamma - 1.0), 0.0)

    def noise(vector: np.ndarray) -> np.ndarray:
        return between(square_raised, vector**2)

    def product(vector: np.ndarray) -> np.ndarray:
        return _sparse_product(starts, columns, values, vector) - expected(vector)

    return _leading(product, noise, expected(np.ones(size)), used, count)


@njit(cache=True, nogil=True)
def _total_used(begin, end, indices, data, offset, used):
    total = 0.0
    for i in range(len(begin)):
        if used[i]:
            for k in range(begin[i], end[i]):
                if used[indices[k] - offset]:
                    total += data[k]
    return total


def _leading(
    product: Callable[[np.ndarray], np.ndarray],
    noise_of: Callable[[np.ndarray], np.ndarray],
    weight: np.ndarray,
    used: np.ndarray,
    count: int,
) -> EigenPairs:
    """Solve product(x) = value * weight * x for the largest values, by Lanczos iterations on the used bins."""
    size = len(weight)
    values, vectors, noise = np.full(count, np.nan), np.full((count, size), np.nan), np.full((count, size), np.nan)
    used = used & (weight > 1e-12 * weight.max(initial=0.0))
    index = np.flatnonzero(used)
    if len(index) < FEWEST_BINS:
        return EigenPairs(values, vectors, noise)
    scale = 1.0 / np.sqrt(weight[index])

    def scaled(vector: np.ndarray) -> np.ndarray:
        whole = np.zeros(size)
        whole[index] = scale * np.ravel(vector)
        return scale * product(whole)[index]

    operator = LinearOperator((len(index), len(index)), matvec=scaled, dtype=np.float64)
    wanted = min(count, len(index) - 2)
    start = np.random.default_rng(0).standard_normal(len(index))
    try:
        found, basis = eigsh(operator, k=wanted, which="LA", v0=start, tol=1e-4, ncv=min(len(index), 20))
    except ArpackNoConvergence as error:
        found, basis = error.eigenvalues, error.eigenvectors
    order = np.argsort(-found)
    norm = np.sqrt(weight[index].sum())
    for k, column in enumerate(order):
        values[k] = found[column]
        vectors[k, index] = basis[:, column] * scale * norm
        if values[k] > 0:
            # An entry is the sum of its row over value * weight: the row's counting noise over their square.
            whole = np.nan_to_num(vectors[k])
            noise[k, index] = noise_of(whole)[index] / (values[k] * weight[index]) ** 2
    return EigenPairs(values, vectors, noise)


def shrink(vector: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Posterior mean of a vector whose entries are noisy values of a process that remembers its neighbours.

    The process is autoregressive of first order; its variance and memory follow from the covariances of the vector's
    entries, of which noise has none at distances above 0. Where noise is small next to what neighbours do not tell,
    entries stay as they are. NaN entries stay NaN.
    """
    used = np.isfinite(vector) & np.isfinite(noise)
    if used.sum() < FEWEST_TO_SHRINK:
        return vector
    filled = np.where(used, vector, 0.0)
    floor = 1e-9 * float(np.mean(filled[used] ** 2))
    precision = np.where(used, 1.0 / np.maximum(np.where(used, noise, 1.0), floor), 0.0)
    mean = float(filled[used].mean())
    lags = np.array([lag for lag in _LAGS if lag < len(vector) // 4])
    covariances = np.zeros(len(lags))
    for k, lag in enumerate(lags):
        both = used[lag:] & used[:-lag]
        if both.any():
            covariances[k] = ((filled[lag:] - mean) * (filled[:-lag] - mean))[both].mean()
    positive = covariances > 0
    if positive.sum() < 2:
        return vector
    # log covariance falls linearly with distance; larger covariances are known better.
    slope, intercept = np.polyfit(lags[positive], np.log(covariances[positive]), 1, w=np.sqrt(covariances[positive]))
    memory = float(np.exp(min(slope, -1e-4)))
    variance = float(min(np.exp(intercept), np.mean((filled[used] - mean) ** 2)))
    innovation = 1.0 / (variance * (1.0 - memory**2))
    diagonal = np.full(len(vector), innovation * (1.0 + memory**2))
    diagonal[[0, -1]] = innovation
    band = np.zeros((2, len(vector)))
    band[0, 1:] = -innovation * memory
    band[1] = diagonal + precision
    posterior = mean + solveh_banded(band, precision * (filled - mean))
    return np.where(used, posterior, np.nan)
