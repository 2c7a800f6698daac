r"""Families of emissions of a hidden Markov model over marks that are independent given the state.

Each family is a small frozen object with its parameters, arrays (K, M). It gives the log-likelihood of rows of
observations in each state, sums sufficient statistics of weighted rows, and makes the family that maximises the
expected log-likelihood from such sums. Sums of blocks add up, so that a genome is never held as a whole. A missing
value is NaN; it says nothing, neither here nor there. float64 throughout.

- Bernoulli: P(x = 1) = p.
- Poisson: mean m.
- Negative binomial: mean m and dispersion a, variance m + a m^2; the maximum in a has no closed form, and is found by
  Newton steps on its logarithm from a histogram of each mark's values.
- Gaussian: mean and variance. The variance has a floor, a small share of the mark's variance over all bins, without
  which one state would close in on a point mass (signal that is clipped below) and the likelihood be unbounded.
- Multinomial: of the reads of a bin over marks, shares p that sum to 1 in each state; the bin's total says nothing.

Log-likelihoods leave out no constants, so that families can be compared on the same data.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, NamedTuple, Self

import numpy as np
from scipy.special import digamma, gammaln, polygamma, xlog1py, xlogy

__all__ = [
    "FAMILIES",
    "Bernoulli",
    "Emission",
    "Gaussian",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
    "Sums",
    "dense_rows",
    "family_from_moments",
]

_SMALLEST_MEAN = 1e-8
_DISPERSIONS = (1e-6, 1e4)
_VARIANCE_FLOOR = 1e-2  # of a mark's variance over all bins; benchmarks/chromatin_states.py families
_NEWTON_STEPS = 30


class Sums(NamedTuple):
    """Sufficient statistics of weighted rows.

    Attributes
    ----------
    weight
        Sum of the weights of the rows where the mark is known (K, M).
    first, second
        Sums of weight times value, and of weight times its square (K, M).
    histogram
        For each mark the weights of each value 0, 1, ... (values, K); of the negative binomial alone.
    """

    weight: np.ndarray
    first: np.ndarray
    second: np.ndarray
    histogram: tuple[np.ndarray, ...] = ()

    def __add__(self, other: Sums) -> Sums:  # type: ignore[override]
        """Statistics of both sets of rows."""
        histogram = tuple(
            _add_longer(mine, theirs) for mine, theirs in zip(self.histogram, other.histogram, strict=True)
        )
        return Sums(self.weight + other.weight, self.first + other.first, self.second + other.second, histogram)

    def combine(self, states: np.ndarray) -> Sums:
        """Statistics of new states that are sums of the present ones: ``states`` is (new, K)."""
        histogram = tuple(part @ states.T for part in self.histogram)
        return Sums(states @ self.weight, states @ self.first, states @ self.second, histogram)


@dataclasses.dataclass(frozen=True, eq=False)
class Emission(abc.ABC):
    """A family with its parameters; ``mean`` is what is shown of it (K, M)."""

    mean: np.ndarray
    name: ClassVar[str]
    discrete: ClassVar[bool] = True

    @property
    def n_states(self) -> int:
        """Number of states K."""
        return len(self.mean)

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """Further parameters by name, each (K, M)."""
        return {}

    @abc.abstractmethod
    def log_likelihood(self, rows: np.ndarray) -> np.ndarray:
        """Log-likelihood (n, K) of rows (n, M) of which NaN is missing."""

    @abc.abstractmethod
    def maximize(self, sums: Sums) -> Self:
        """Return the family at the maximum; a state without weight keeps its parameters."""

    @abc.abstractmethod
    def expected(self, sums: Sums) -> np.ndarray:
        """Expected log-likelihood (K,) of weighted rows in each state, but for terms that no parameter changes."""

    def sums(self, rows: np.ndarray, weights: np.ndarray) -> Sums:
        """Sufficient statistics of rows (n, M) with a weight in each state (n, K)."""
        known = np.isfinite(rows)
        values = rows if known.all() else np.where(known, rows, 0.0)
        if known.all():
            weight = np.repeat(weights.sum(0)[:, None], rows.shape[1], 1)
        else:
            weight = weights.T @ known.astype(np.float64)
        second = weights.T @ (values * values) if self.needs_squares else np.zeros_like(weight)
        return Sums(weight, weights.T @ values, second)

    needs_squares: ClassVar[bool] = False

    def to_vector(self) -> np.ndarray:
        """Parameters as one vector, on a scale on which steps may be extrapolated."""
        return self.mean.ravel()

    @abc.abstractmethod
    def from_vector(self, vector: np.ndarray) -> Self:
        """Return the family with the parameters of a vector, brought back into their range."""

    def select(self, states: np.ndarray) -> Self:
        """Return the family of these states, in this order; a state may occur more than once."""
        changes = {
            field.name: getattr(self, field.name)[states]
            for field in dataclasses.fields(self)
            if getattr(self, field.name).ndim == 2
        }
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, eq=False)
class Bernoulli(Emission):
    """Presence of marks."""

    name: ClassVar[str] = "bernoulli"

    def log_likelihood(self, rows: np.ndarray) -> np.ndarray:
        """Log-likelihood (n, K) of rows of 0, 1 and NaN."""
        possible = (self.mean > 0) & (self.mean < 1)
        inner = np.where(possible, self.mean, 0.5)
        present, absent = np.log(inner), np.log1p(-inner)
        known = np.isfinite(rows)
        if known.all():
            result = rows @ np.where(possible, present - absent, 0.0).T + np.where(possible, absent, 0.0).sum(1)
        else:
            result = np.where(known, rows, 0.0) @ np.where(possible, present - absent, 0.0).T
            result += known.astype(np.float64) @ np.where(possible, absent, 0.0).T
        if not possible.all():  # exact zeros and ones, which 0 * log 0 would make NaN
            for state, mark in np.argwhere(~possible):
                other = rows[:, mark] == (1.0 if self.mean[state, mark] == 0 else 0.0)
                result[other, state] = -np.inf
        return result

    def maximize(self, sums: Sums) -> Bernoulli:
        """Return the probabilities at the maximum."""
        return dataclasses.replace(self, mean=np.clip(_ratio(sums.first, sums.weight, self.mean), 0.0, 1.0))

    def expected(self, sums: Sums) -> np.ndarray:
        """Expected log-likelihood of each state."""
        return (xlogy(sums.first, self.mean) + xlog1py(sums.weight - sums.first, -self.mean)).sum(1)

    def from_vector(self, vector: np.ndarray) -> Bernoulli:
        """Return the family with the probabilities of a vector."""
        return dataclasses.replace(self, mean=np.clip(vector.reshape(self.mean.shape), 1e-9, 1 - 1e-9))


@dataclasses.dataclass(frozen=True, eq=False)
class Poisson(Emission):
    """Counts of marks."""

    name: ClassVar[str] = "poisson"

    def log_likelihood(self, rows: np.ndarray) -> np.ndarray:
        """Log-likelihood (n, K) of rows of counts."""
        mean = np.maximum(self.mean, _SMALLEST_MEAN)
        known = np.isfinite(rows)
        values = np.where(known, rows, 0.0)
        return (
            values @ np.log(mean).T - known.astype(np.float64) @ mean.T - _log_factorial(values).sum(1, keepdims=True)
        )

    def maximize(self, sums: Sums) -> Poisson:
        """Return the means at the maximum."""
        return dataclasses.replace(self, mean=_ratio(sums.first, sums.weight, self.mean))

    def expected(self, sums: Sums) -> np.ndarray:
        """Expected log-likelihood of each state."""
        mean = np.maximum(self.mean, _SMALLEST_MEAN)
        return (sums.first * np.log(mean) - sums.weight * mean).sum(1)

    def to_vector(self) -> np.ndarray:
        """Return square roots of the means."""
        return np.sqrt(self.mean).ravel()

    def from_vector(self, vector: np.ndarray) -> Poisson:
        """Return the family with the means of a vector."""
        return dataclasses.replace(self, mean=np.maximum(vector.reshape(self.mean.shape), 1e-4) ** 2)


@dataclasses.dataclass(frozen=True, eq=False)
class NegativeBinomial(Emission):
    """Counts of marks that vary more than a Poisson."""

    dispersion: np.ndarray
    name: ClassVar[str] = "negative_binomial"

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The dispersion."""
        return {"dispersion": self.dispersion}

    def log_likelihood(self, rows: np.ndarray) -> np.ndarray:
        """Log-likelihood (n, K) of rows of counts, by a table of the values that occur."""
        result = np.zeros((len(rows), self.n_states))
        for mark in range(rows.shape[1]):
            column = rows[:, mark]
            known = np.isfinite(column)
            if not known.all():
                column = np.where(known, column, 0.0)
            # Counts are few and small: a table by value, where that is shorter than the column.
            highest = int(column.max(initial=0.0))
            if highest < max(4 * len(rows), 256):
                values, place = np.arange(highest + 1.0), column.astype(np.intp)
            else:
                values, place = np.unique(column, return_inverse=True)
            table = _negative_binomial(values, self.mean[:, mark], self.dispersion[:, mark])
            part = table[place]
            result += part if known.all() else np.where(known[:, None], part, 0.0)
        return result

    def sums(self, rows: np.ndarray, weights: np.ndarray) -> Sums:
        """Return weights of each value of each mark."""
        histograms = []
        for mark in range(rows.shape[1]):
            known = np.isfinite(rows[:, mark])
            column = rows[known, mark].astype(np.intp)
            size = int(column.max(initial=0)) + 1
            part = weights if known.all() else weights[known]
            histograms.append(
                np.stack([np.bincount(column, part[:, k], minlength=size) for k in range(part.shape[1])], 1)
            )
        values = [np.arange(len(part)) for part in histograms]
        weight = np.stack([part.sum(0) for part in histograms], 1)
        first = np.stack([value @ part for value, part in zip(values, histograms, strict=True)], 1)
        second = np.stack([(value * value) @ part for value, part in zip(values, histograms, strict=True)], 1)
        return Sums(weight, first, second, tuple(histograms))

    def maximize(self, sums: Sums) -> NegativeBinomial:
        """Return means, and the dispersions at the maximum."""
        mean = np.maximum(_ratio(sums.first, sums.weight, self.mean), _SMALLEST_MEAN)
        dispersion = self.dispersion.copy()
        for mark, histogram in enumerate(sums.histogram):
            used = np.flatnonzero(histogram.sum(1) > 0)
            dispersion[:, mark] = _best_dispersion(
                used.astype(np.float64), histogram[used], mean[:, mark], self.dispersion[:, mark]
            )
        return dataclasses.replace(self, mean=mean, dispersion=dispersion)

    def expected(self, sums: Sums) -> np.ndarray:
        """Expected log-likelihood of each state."""
        total = np.zeros(self.n_states)
        for mark, histogram in enumerate(sums.histogram):
            used = np.flatnonzero(histogram.sum(1) > 0)
            table = _negative_binomial(used.astype(np.float64), self.mean[:, mark], self.dispersion[:, mark])
            total += (histogram[used] * table).sum(0)
        return total

    def to_vector(self) -> np.ndarray:
        """Return logarithms of means and dispersions."""
        return np.log(np.concatenate([np.maximum(self.mean, _SMALLEST_MEAN).ravel(), self.dispersion.ravel()]))

    def from_vector(self, vector: np.ndarray) -> NegativeBinomial:
        """Return the family with means and dispersions of a vector."""
        mean, dispersion = np.exp(np.clip(vector, -30.0, 30.0)).reshape(2, *self.mean.shape)
        return dataclasses.replace(
            self, mean=np.maximum(mean, _SMALLEST_MEAN), dispersion=np.clip(dispersion, *_DISPERSIONS)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian(Emission):
    """Signal of marks, with a floor of the variance for each mark (M,)."""

    variance: np.ndarray
    floor: np.ndarray
    name: ClassVar[str] = "gaussian"
    discrete: ClassVar[bool] = False
    needs_squares: ClassVar[bool] = True

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The variance."""
        return {"variance": self.variance}

    def log_likelihood(self, rows: np.ndarray) -> np.ndarray:
        """Log-likelihood (n, K) of rows of numbers."""
        known = np.isfinite(rows)
        values = np.where(known, rows, 0.0)
        precision = 1.0 / self.variance
        constant = -0.5 * (np.log(2.0 * np.pi * self.variance) + self.mean**2 * precision)
        return (
            known.astype(np.float64) @ constant.T
            + values @ (self.mean * precision).T
            - 0.5 * (values * values) @ precision.T
        )

    def maximize(self, sums: Sums) -> Gaussian:
        """Return means and variances at the maximum, not below the floor."""
        mean = _ratio(sums.first, sums.weight, self.mean)
        square = _ratio(sums.second, sums.weight, self.variance + self.mean**2)
        return dataclasses.replace(self, mean=mean, variance=np.maximum(square - mean**2, self.floor))

    def expected(self, sums: Sums) -> np.ndarray:
        """Expected log-likelihood of each state."""
        squares = sums.second - 2.0 * self.mean * sums.first + self.mean**2 * sums.weight
        return -0.5 * (sums.weight * np.log(2.0 * np.pi * self.variance) + squares / self.variance).sum(1)

    def to_vector(self) -> np.ndarray:
        """Return means over the deviation of the mark at its floor, and logarithms of variances."""
        return np.concatenate([(self.mean / np.sqrt(self.floor)).ravel(), np.log(self.variance).ravel()])

    def from_vector(self, vector: np.ndarray) -> Gaussian:
        """Return the family with means and variances of a vector."""
        mean, log_variance = vector.reshape(2, *self.mean.shape)
        variance = np.maximum(np.exp(np.clip(log_variance, -60.0, 60.0)), self.floor)
        return dataclasses.replace(self, mean=mean * np.sqrt(self.floor), variance=variance)


@dataclasses.dataclass(frozen=True, eq=False)
class Multinomial(Emission):
    """Shares of marks among the reads of a bin."""

    name: ClassVar[str] = "multinomial"

    def log_likelihood(self, rows: np.ndarray) -> np.ndarray:
        """Log-likelihood (n, K) of rows of counts; shares are conditioned on the marks that are known."""
        known = np.isfinite(rows)
        values = np.where(known, rows, 0.0)
        share = np.maximum(self.mean, 1e-12)
        total = values.sum(1, keepdims=True)
        constant = _log_factorial(total) - _log_factorial(values).sum(1, keepdims=True)
        return values @ np.log(share).T - total * np.log(known.astype(np.float64) @ share.T + 1e-300) + constant

    def maximize(self, sums: Sums) -> Multinomial:
        """Return the shares at the maximum.

        Where marks are missing in some bins, the sums are first divided by how often the mark was known.
        """
        rate = _ratio(sums.first, sums.weight, self.mean)
        total = rate.sum(1, keepdims=True)
        return dataclasses.replace(self, mean=np.where(total > 0, rate / np.where(total > 0, total, 1.0), self.mean))

    def expected(self, sums: Sums) -> np.ndarray:
        """Expected log-likelihood of each state."""
        return (sums.first * np.log(np.maximum(self.mean, 1e-12))).sum(1)

    def to_vector(self) -> np.ndarray:
        """Return square roots of the shares."""
        return np.sqrt(self.mean).ravel()

    def from_vector(self, vector: np.ndarray) -> Multinomial:
        """Return the family with the shares of a vector."""
        share = np.maximum(vector.reshape(self.mean.shape), 1e-6) ** 2
        return dataclasses.replace(self, mean=share / share.sum(1, keepdims=True))


FAMILIES: dict[str, type[Emission]] = {
    family.name: family for family in (Bernoulli, Poisson, NegativeBinomial, Gaussian, Multinomial)
}


def family_from_moments(name: str, mean: np.ndarray, variance: np.ndarray, overall_variance: np.ndarray) -> Emission:
    """Return a family whose states have these means and variances (K, M), by moments.

    Parameters
    ----------
    name
        One of :data:`FAMILIES`.
    mean, variance
        Of each mark in each state.
    overall_variance
        Of each mark over all bins (M,): the floor of the Gaussian's variance is a share of it.
    """
    if name == "bernoulli":
        return Bernoulli(np.clip(mean, 1e-6, 1 - 1e-6))
    if name == "poisson":
        return Poisson(np.maximum(mean, _SMALLEST_MEAN))
    if name == "negative_binomial":
        mean = np.maximum(mean, 1e-3)
        return NegativeBinomial(mean, np.clip((variance - mean) / mean**2, 1e-2, 1e2))
    if name == "gaussian":
        floor = np.maximum(_VARIANCE_FLOOR * overall_variance, 1e-12)
        return Gaussian(mean, np.maximum(variance, 10 * floor), floor)
    if name == "multinomial":
        share = np.maximum(mean, 1e-6)
        return Multinomial(share / share.sum(1, keepdims=True))
    raise ValueError(f"the family must be one of {list(FAMILIES)}, found {name!r}.")


def dense_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows as dense float64, NaN where missing; masked arrays and sparse matrices are taken too."""
    if hasattr(rows, "toarray"):
        rows = rows.toarray()
    return np.asarray(rows, np.float64)


def _ratio(part: np.ndarray, whole: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), otherwise)


def _add_longer(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if len(left) < len(right):
        left, right = right, left
    total = left.copy()
    total[: len(right)] += right
    return total


def _log_factorial(values: np.ndarray) -> np.ndarray:
    highest = values.max(initial=0.0)
    if highest < max(values.size, 256):  # a table is shorter than the values
        return gammaln(np.arange(highest + 1.0) + 1.0)[values.astype(np.intp)]
    return gammaln(values + 1.0)


def _negative_binomial(values: np.ndarray, mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """Log-probability of values (n,) for several means and dispersions (K,): (n, K)."""
    mean = np.maximum(mean, _SMALLEST_MEAN)
    size = 1.0 / dispersion
    values = values[:, None]
    return (
        gammaln(values + size)
        - gammaln(size)
        - gammaln(values + 1.0)
        + values * np.log(dispersion * mean)
        - (values + size) * np.log1p(dispersion * mean)
    )


def _best_dispersion(values: np.ndarray, weights: np.ndarray, mean: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Dispersion (K,) of largest likelihood at given means; values (n,), weights (n, K)."""
    log_low, log_high = np.log(_DISPERSIONS)
    log_size = -np.log(start)
    total = weights.sum(0)
    values = values[:, None]
    for _ in range(_NEWTON_STEPS):
        size = np.exp(log_size)
        ratio = 1.0 + mean / size
        slope = (weights * digamma(values + size)).sum(0) - total * (digamma(size) + np.log(ratio))
        slope += total * mean / (size + mean) - (weights * values).sum(0) / (size + mean)
        curve = (weights * polygamma(1, values + size)).sum(0) - total * polygamma(1, size)
        curve += total * mean / (size * (size + mean))
        curve += (weights * (values + size)).sum(0) / (size + mean) ** 2 - total / (size + mean)
        # In the logarithm of the size.
        gradient, hessian = size * slope, size * slope + size * size * curve
        step = np.where(hessian < 0, -gradient / np.where(hessian < 0, hessian, -1.0), np.sign(gradient))
        step = np.clip(np.where(total > 0, step, 0.0), -2.0, 2.0)
        moved = np.clip(log_size + step, -log_high, -log_low)
        done = np.abs(moved - log_size).max() < 1e-8
        log_size = moved
        if done:
            break
    return np.exp(-log_size)
