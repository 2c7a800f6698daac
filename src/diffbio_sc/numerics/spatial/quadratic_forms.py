"""Tail probabilities of quadratic forms of Gaussian variables, and their combination over dependent tests.

A quadratic form is given by its spectrum: eigenvalues with multiplicities, so that it is distributed as
sum_j multiplicity_j * eigenvalue_j * chi2(1). All of this runs on the host in float64 and in log space: p-values of
1e-300 are as good as those of 0.1.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import log_ndtr

_STEPS = 40
_LOG_ZERO = -745.0  # of the smallest float64


def log_tail(
    eigenvalues: Float[np.ndarray, "forms k"], multiplicity: Float[np.ndarray, "forms k"]
) -> Float[np.ndarray, " forms"]:
    """Log probability that each form is above 0, by the saddlepoint approximation of Lugannani and Rice.

    With the cumulant function ``C(t) = -1/2 sum m_j log(1 - 2 t lambda_j)`` and its saddlepoint ``C'(t) = 0``,
    ``w = sign(t) sqrt(-2 C)`` and ``u = t sqrt(C'')``, the tail is the normal tail beyond ``w + log(u / w) / w``
    (Kuonen 1999, Biometrika 86:929). It is right to a few per cent at any depth.

    The probability that a form exceeds x times the sum of squares of the same variables is the probability that the
    form with eigenvalues ``lambda_j - x`` is above 0: ratios need no more than this.
    """
    multiplicity = np.broadcast_to(multiplicity, eigenvalues.shape)
    used = multiplicity > 0
    eigenvalues = np.where(used, eigenvalues, 0.0)
    largest = np.where(used, eigenvalues, -np.inf).max(1)
    smallest = np.where(used, eigenvalues, np.inf).min(1)
    both = (largest > 0) & (smallest < 0)
    result = np.where(largest <= 0, _LOG_ZERO, 0.0)
    if not both.any():
        return result
    values, counts = eigenvalues[both], multiplicity[both]
    point = _saddlepoint(values, counts, 0.5 / smallest[both], 0.5 / largest[both])
    denominator = 1.0 - 2.0 * point[:, None] * values
    ratio = values / denominator
    cumulant = -0.5 * (counts * np.log(denominator)).sum(1)
    second = 2.0 * (counts * ratio**2).sum(1)
    third = 8.0 * (counts * ratio**3).sum(1)
    w = np.sign(point) * np.sqrt(np.maximum(-2.0 * cumulant, 0.0))
    u = point * np.sqrt(second)
    # At the mean both w and u vanish; there the limit in terms of the skewness is used.
    near = np.abs(w) < 1e-2
    safe = np.where(near, 1.0, w)
    normal = np.where(near, w + third / (6.0 * second**1.5), safe + np.log(np.where(near, 1.0, u / safe)) / safe)
    result[both] = log_ndtr(-normal)
    return result


def _saddlepoint(values, counts, low, high):
    """Root of C' between its poles, by Newton steps kept in a shrinking bracket."""
    low, high = low * (1.0 - 1e-10), high * (1.0 - 1e-10)
    mean = (counts * values).sum(1)
    found = np.clip(-mean / (2.0 * (counts * values**2).sum(1)), 0.7 * low, 0.7 * high)
    active, point = np.arange(len(values)), found.copy()
    for _ in range(_STEPS):
        ratio = values / (1.0 - 2.0 * point[:, None] * values)
        first = (counts * ratio).sum(1)
        second = 2.0 * (counts * ratio**2).sum(1)
        low, high = np.where(first < 0, np.maximum(low, point), low), np.where(first > 0, np.minimum(high, point), high)
        new = point - first / second
        new = np.where((new <= low) | (new >= high), 0.5 * (low + high), new)
        done = np.abs(first) < 1e-6 * np.sqrt(second)
        found[active] = np.where(done, point, new)
        if done.all():
            break
        left = ~done
        active, point, low, high = active[left], new[left], low[left], high[left]
        values, counts = values[left], counts[left]
    return found


def two_point_spectrum(
    mean: Float[np.ndarray, " forms"],
    second: Float[np.ndarray, " forms"],
    third: Float[np.ndarray, " forms"],
    lower: float,
) -> tuple[Float[np.ndarray, "forms 2"], Float[np.ndarray, "forms 2"]]:
    """Spectrum of two eigenvalues, one of them ``-lower``, with given first three cumulants."""
    gap = second / 2.0 + mean * lower
    upper = np.maximum(lower + (third / 8.0 - mean * lower**2) / gap, 0.05 * lower)
    weight = gap / (upper + lower)
    eigenvalues = np.stack([upper, np.full_like(upper, -lower)], -1)
    return eigenvalues, np.stack([weight / upper, np.maximum(weight - mean, 1e-6) / lower], -1)


def compress_spectrum(
    eigenvalues: Float[np.ndarray, " n"], *, alone: int = 12, groups: int = 6
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Few eigenvalues with multiplicities in place of many (in decreasing order).

    The largest stand alone; each group of others is two values, a standard deviation above and below its mean: the sum
    and the sum of squares are kept. Groups depend on ranks only, so that the result moves smoothly with the
    eigenvalues.
    """
    n = len(eigenvalues)
    if n <= alone + 2 * groups:
        return eigenvalues, np.ones(n)
    ends = np.unique(np.round(alone + (n - alone) * np.linspace(0, 1, groups + 1) ** 2).astype(int))
    starts, sizes = ends[:-1] - alone, np.diff(ends)
    rest = eigenvalues[alone:]
    mean = np.add.reduceat(rest, starts) / sizes
    spread = np.sqrt(np.add.reduceat((rest - np.repeat(mean, sizes)) ** 2, starts) / sizes)
    values = np.r_[eigenvalues[:alone], mean + spread, mean - spread]
    return values, np.r_[np.ones(alone), sizes / 2.0, sizes / 2.0]


def combine_cauchy(
    log_p: Float[np.ndarray, "tests items"], weights: Float[np.ndarray, "tests items"]
) -> Float[np.ndarray, " items"]:
    """Log p-value of the weighted Cauchy combination of dependent tests (Liu and Xie 2020, JASA 115:393).

    Missing tests (NaN) are left out and the weights of the others scaled to sum 1; NaN where none is left.
    """
    there = np.isfinite(log_p)
    weights = np.where(there, weights, 0.0)
    total = weights.sum(0)
    none = total == 0
    weights = np.maximum(weights / np.where(none, 1.0, total), 1e-300)
    log_p = np.where(there, np.minimum(log_p, -1e-14), -0.7)
    probability = np.exp(log_p)
    statistic = (weights / np.tan(np.pi * np.clip(probability, 1e-200, 1 - 1e-7))).sum(0)
    shallow = np.log(np.arctan2(1.0, statistic) / np.pi)
    # Far in the tail the Cauchy quantile of p is 1 / (pi p): the weighted harmonic mean of p, in log space.
    terms = np.log(weights) - log_p
    largest = terms.max(0)
    deep = -(largest + np.log(np.exp(terms - largest).sum(0)))
    combined = np.where(deep < -40, deep, shallow)
    return np.where(none, np.nan, np.minimum(combined, 0.0))
