"""Tests of two groups of few replicates, with dispersions that features share.

A feature is observed once in each replicate. Its variance within the groups has a common part, a dispersion that
follows a trend over strata (of distance, say) and means, and a part of its own, for which two or three replicates say
little. As in quasi-likelihood tests of RNA-seq [1]_, the common part is estimated from many features and the own
variance is shrunk toward it [2]_; how strongly follows from the spread of the variances.

.. [1] S. P. Lund et al., Statistical Applications in Genetics and Molecular Biology 11 (2012) 5.
.. [2] G. K. Smyth, Statistical Applications in Genetics and Molecular Biology 3 (2004) 3.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from scipy import stats

_NEWTON_STEPS = 25
_BISECTIONS = 40
_LARGEST_DISPERSION = 10.0
_PRIOR_DF = np.concatenate([np.geomspace(1.0, 200.0, 60), [np.inf]])
# Quantile of the variances that is held against their median: features that changed, up to a tenth, hardly move it.
# Without replicates those that changed are among the variances: up to a quarter.
_QUANTILE, _ALONE_QUANTILE = 0.9, 0.75
LEAST_STRATUM = 50
_LEAST_EXCESS = 30
UNKNOWN_PRIOR_DF = 10.0
"""Degrees of freedom of the prior where too few features tell: one worth ten replicates."""


class Fit(NamedTuple):
    """Fit of each feature.

    Attributes
    ----------
    null, full
        Deviance with one mean, and with one mean for each group.
    effect
        Log of the second group's mean over the first's.
    error
        Standard error of the effect at the dispersion given.
    """

    null: np.ndarray
    full: np.ndarray
    effect: np.ndarray
    error: np.ndarray


class Observations(Protocol):
    """What was observed of each feature (features, replicates)."""

    @property
    def size(self) -> np.ndarray:
        """Amount of information in each feature, such as its mean count, over which the variance has a trend."""
        ...

    def fit(self, group: np.ndarray, dispersion: np.ndarray) -> Fit:
        """Fit with a dispersion for each feature."""
        ...

    def take(self, rows: np.ndarray) -> Observations:
        """Some of the features."""
        ...


class Counts:
    """Negative binomial counts: mean ``exposure * exp(group)``, variance ``mean + dispersion * mean**2``."""

    def __init__(self, counts: np.ndarray, exposure: np.ndarray):
        self.counts = np.asarray(counts, np.float64)
        self.exposure = np.asarray(exposure, np.float64)

    @property
    def size(self) -> np.ndarray:
        """Mean count of each feature."""
        return self.counts.mean(1)

    def take(self, rows: np.ndarray) -> Counts:
        """Some of the features."""
        return Counts(self.counts[rows], self.exposure[rows])

    def fit(self, group: np.ndarray, dispersion: np.ndarray) -> Fit:
        """Fit by Newton's method in the log of the mean."""
        null = self.deviance(self.log_rate(np.ones_like(group, bool), dispersion)[:, None], dispersion)
        rates = [self.log_rate(group == code, dispersion) for code in (0, 1)]
        full = self.deviance(np.stack(rates, 1)[:, group], dispersion)
        information = [
            self._weight(np.exp(rate)[:, None] * self.exposure[:, group == code], dispersion).sum(1)
            for code, rate in enumerate(rates)
        ]
        with np.errstate(divide="ignore"):
            error = np.sqrt(1.0 / information[0] + 1.0 / information[1])
        return Fit(null, full, rates[1] - rates[0], error)

    @staticmethod
    def _weight(mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
        return mean / (1.0 + dispersion[:, None] * mean)

    def log_rate(self, chosen: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
        """Log of the ratio of counts to exposures in the chosen replicates, by maximum likelihood."""
        counts, exposure = self.counts[:, chosen], self.exposure[:, chosen]
        # A group without contacts would have a rate of 0: half a count stands for it.
        total = np.maximum(counts.sum(1), 0.5)
        rate = np.log(total / np.maximum(exposure.sum(1), 1e-300))
        some = counts.sum(1) > 0
        for _ in range(_NEWTON_STEPS):
            mean = np.exp(rate)[:, None] * exposure
            shrink = 1.0 + dispersion[:, None] * mean
            step = ((counts - mean) / shrink).sum(1) / np.maximum((mean / shrink).sum(1), 1e-12)
            step = np.where(some, np.clip(step, -1.0, 1.0), 0.0)
            rate += step
            if np.abs(step).max(initial=0.0) < 1e-8:
                break
        return rate

    def deviance(self, log_rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
        """Twice the log-likelihood below that of the counts themselves, summed over replicates."""
        counts, mean = self.counts, np.exp(log_rate) * self.exposure
        phi = np.maximum(dispersion, 1e-8)[:, None]
        mean = np.maximum(mean, 1e-12)
        ratio = np.where(counts > 0, counts * np.log(np.maximum(counts, 1.0) / mean), 0.0)
        other = (counts + 1.0 / phi) * np.log1p(phi * (counts - mean) / (1.0 + phi * mean))
        return np.maximum(2.0 * (ratio - other), 0.0).sum(1)


class LogRatios:
    """Normal log ratios: variance ``sampling + dispersion``."""

    def __init__(self, values: np.ndarray, sampling: np.ndarray):
        self.values = np.asarray(values, np.float64)
        self.sampling = np.asarray(sampling, np.float64)

    @property
    def size(self) -> np.ndarray:
        """Precision of each feature: one over its mean sampling variance."""
        return 1.0 / np.maximum(self.sampling.mean(1), 1e-12)

    def take(self, rows: np.ndarray) -> LogRatios:
        """Some of the features."""
        return LogRatios(self.values[rows], self.sampling[rows])

    def fit(self, group: np.ndarray, dispersion: np.ndarray) -> Fit:
        """Fit by weighted means."""
        weight = 1.0 / (self.sampling + dispersion[:, None])

        def mean(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            total = weight[:, chosen].sum(1)
            return (weight[:, chosen] * self.values[:, chosen]).sum(1) / total, total

        overall, _ = mean(np.ones(len(group), bool))
        (first, first_weight), (second, second_weight) = mean(group == 0), mean(group == 1)
        null = (weight * (self.values - overall[:, None]) ** 2).sum(1)
        full = (weight * (self.values - np.stack([first, second], 1)[:, group]) ** 2).sum(1)
        return Fit(null, full, second - first, np.sqrt(1.0 / first_weight + 1.0 / second_weight))


class Variance(NamedTuple):
    """What features share of their variance.

    Attributes
    ----------
    edges
        Upper edges of the strata, the last left out.
    dispersion
        Dispersion of each stratum.
    log_size, scale
        Knots of the trend of the remaining variance, about 1, over the log of a feature's size.
    prior_df
        Degrees of freedom that the trend is worth beside the feature's own replicates.
    residual_df
        Degrees of freedom within the groups; 0 without replicates.
    """

    edges: np.ndarray
    dispersion: np.ndarray
    log_size: np.ndarray
    scale: np.ndarray
    prior_df: float
    residual_df: int

    def dispersion_at(self, covariate: np.ndarray) -> np.ndarray:
        """Dispersion of features by the covariate that made the strata, such as their distance."""
        return self.dispersion[np.searchsorted(self.edges, covariate, side="right")]

    def scale_at(self, size: np.ndarray) -> np.ndarray:
        """Variance of features beside that of the model, by their size."""
        return np.interp(np.log(np.maximum(size, 1e-12)), self.log_size, self.scale)


def fit_variance(observations: Observations, group: np.ndarray, covariate: np.ndarray, n_strata: int = 6) -> Variance:
    """Estimate the dispersion by strata of a covariate, and how much features differ in their variance.

    The dispersion of a stratum is where the median deviance has the median of its chi-squared distribution, so that a
    few features that differ between the groups do not count. Without replicates the deviance between the groups stands
    in for that within them: the dispersion then holds all of their differences and tests are the wider for it.

    Parameters
    ----------
    observations
        Features that stand for all, most of which do not differ between groups if there are no replicates.
    group
        0 or 1 for each replicate.
    covariate
        Value of each feature that strata are made of.
    n_strata
        Number of strata, fewer if they would hold less than 50 features.
    """
    group = np.asarray(group)
    residual_df = len(group) - 2
    df = residual_df or 1
    count = len(covariate)
    n_strata = max(min(n_strata, count // LEAST_STRATUM), 1)
    edges = np.unique(np.quantile(covariate, np.linspace(0, 1, n_strata + 1)[1:-1])) if count else np.empty(0)
    edges = edges[edges > covariate.min()] if count else edges
    stratum = np.searchsorted(edges, covariate, side="right")
    strata = len(edges) + 1

    def deviance(dispersion: np.ndarray) -> np.ndarray:
        fit = observations.fit(group, dispersion)
        return fit.full if residual_df else fit.null

    low, high = np.full(strata, -16.0), np.full(strata, np.log(_LARGEST_DISPERSION))
    members = [np.flatnonzero(stratum == code) for code in range(strata)]
    target = stats.chi2.median(df)
    if count:
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            found = deviance(np.exp(middle)[stratum])
            above = np.array([len(rows) > 0 and np.median(found[rows]) > target for rows in members])
            low, high = np.where(above, middle, low), np.where(above, high, middle)
            if (high - low).max() < 1e-3:
                break
    dispersion = np.exp(0.5 * (low + high))
    dispersion[dispersion < 1e-6] = 0.0
    scaled = deviance(dispersion[stratum]) / target if count else np.empty(0)
    log_size = np.log(np.maximum(observations.size, 1e-12))
    knots, scale = _size_trend(log_size, scaled)
    relative = scaled / np.interp(log_size, knots, scale)
    quantile = _QUANTILE if residual_df else _ALONE_QUANTILE
    return Variance(edges, dispersion, knots, scale, _prior_df(relative, df, quantile), residual_df)


def given_variance(dispersion: float, replicates: int) -> Variance:
    """Variance of features whose dispersion is known, from replicates of another experiment."""
    return Variance(np.empty(0), np.array([dispersion]), np.zeros(1), np.ones(1), float("inf"), replicates - 2)


def _size_trend(log_size: np.ndarray, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Running median of the scaled variance in up to eight groups of features of like size."""
    groups = min(len(log_size) // (2 * LEAST_STRATUM), 8)
    if groups < 2:
        return np.zeros(1), np.ones(1)
    order = np.argsort(log_size, kind="stable")
    parts = np.array_split(order, groups)
    knots = np.array([np.median(log_size[part]) for part in parts])
    scale = np.array([np.median(scaled[part]) for part in parts])
    return knots, np.maximum(scale, 0.1)


def _prior_df(relative: np.ndarray, df: int, quantile: float) -> float:
    """Degrees of freedom of the F distribution whose upper quantile lies as far above its median as that found."""
    if len(relative) < LEAST_STRATUM:
        return UNKNOWN_PRIOR_DF
    found = np.quantile(relative, quantile) / max(np.median(relative), 1e-12)
    ratio = stats.f.ppf(quantile, df, _PRIOR_DF[:-1]) / stats.f.median(df, _PRIOR_DF[:-1])
    limit = stats.chi2.ppf(quantile, df) / stats.chi2.median(df)
    ratio = np.append(ratio, limit)  # falls with the degrees of freedom
    return float(_PRIOR_DF[np.argmin(np.abs(np.log(ratio) - np.log(found)))])


def excess_variance(observations: Observations, group: np.ndarray, covariate: np.ndarray, variance: Variance) -> float:
    """How much more some features vary than those that the variance was estimated from: a factor, at least 1.

    The median deviance of these features tells, if there are at least 30 of them. Without replicates it holds the
    differences between the groups, and the factor rises with the share of features that differ; the third quartile is
    looked at too there, because nothing else would tell of heavy tails.
    """
    if len(covariate) < _LEAST_EXCESS:
        return 1.0
    fit = observations.fit(np.asarray(group), variance.dispersion_at(covariate))
    found = (fit.full if variance.residual_df else fit.null) / variance.scale_at(observations.size)
    df = variance.residual_df or 1
    levels = [0.5] if variance.residual_df else [0.5, _ALONE_QUANTILE]
    return max(1.0, *(float(np.quantile(found, level) / stats.chi2.ppf(level, df)) for level in levels))


class GroupTest(NamedTuple):
    """Test of each feature.

    Attributes
    ----------
    effect
        Natural log of the second group's mean over the first's.
    error
        Standard error, variance of the feature included.
    statistic
        Signed root of the F statistic.
    pvalue
        Two-sided.
    dispersion
        Dispersion of the feature's stratum.
    """

    effect: np.ndarray
    error: np.ndarray
    statistic: np.ndarray
    pvalue: np.ndarray
    dispersion: np.ndarray


def compare_groups(
    observations: Observations, group: np.ndarray, covariate: np.ndarray, variance: Variance, inflation: float
) -> GroupTest:
    """Test features between two groups by a quasi-likelihood F test with moderated variance.

    Parameters
    ----------
    observations, group, covariate
        As in :func:`fit_variance`.
    variance
        What features share.
    inflation
        Factor on all variances, from comparisons of replicates with replicates.
    """
    group = np.asarray(group)
    dispersion = variance.dispersion_at(covariate)
    fit = observations.fit(group, dispersion)
    trend = variance.scale_at(observations.size)
    prior, df = variance.prior_df, variance.residual_df
    if df == 0:
        moderated, total_df = trend, prior
    elif np.isinf(prior):
        moderated, total_df = trend, np.inf
    else:
        moderated, total_df = (prior * trend + fit.full) / (prior + df), prior + df
    moderated = moderated * inflation
    square = np.maximum(fit.null - fit.full, 0.0) / moderated
    root = np.sqrt(square)
    pvalue = 2.0 * (stats.norm.sf(root) if np.isinf(total_df) else stats.t.sf(root, total_df))
    return GroupTest(
        fit.effect, fit.error * np.sqrt(moderated), np.sign(fit.effect) * root, np.minimum(pvalue, 1.0), dispersion
    )


def swapped_groups(group: np.ndarray) -> np.ndarray | None:
    """Groups that each hold half of either true group, or None where a group has no replicates.

    What differs between them is replicates against replicates alone.
    """
    group = np.asarray(group)
    swapped = group.copy()
    for code in (0, 1):
        members = np.flatnonzero(group == code)
        if len(members) < 2:
            return None
        swapped[members[: len(members) // 2]] = 0
        swapped[members[len(members) // 2 :]] = 1
    return swapped
