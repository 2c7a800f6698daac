r"""Presence of marks from counts, softly: the threshold of ChromHMM, and a likelihood of the counts to learn it from.

A mark is present in a bin whose count meets the threshold tau of a Poisson tail about the mean of the sequence (Ernst
and Kellis 2012, Nature Methods 9:215). The soft call is

    q = sigmoid(a (log(1 + count) - log(1 + (tau - 1/2) t)))

with a slope a and a factor t of the threshold, 1 at the start; as a grows it becomes the hard call.

To learn it, counts are given a law for either case: negative binomial of mean b m where the mark is absent, b m (1 + e)
where it is present, m the mean of the sequence. For any law P of presence, as of a chain of chromatin states,

    log P(counts) >= E_q log P(presence) + sum over bins and marks of E_q log P(count | presence) + entropy of q

The last two terms are ``presence_bound``, the first is what :class:`ChromatinStateAnnotator` puts a number on when it
is given q as expected presence. Minus their sum is a loss of the counts themselves: it cannot be lowered by calling
everything absent, and stands for one and the same data whatever the threshold. Alone, the binarizer takes presence to
be independent in bins, with the mean of q as its probability.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.special import gammainc
from jaxtyping import Array, Float

from diffbio_sc.numerics.counts.negative_binomial import negative_binomial_log_likelihood
from diffbio_sc.operators.contract import FitReport, Operator, OperatorConfig, as_float_array, check_axis_size

_SMALLEST_MEAN = 1e-4
_BISECTIONS = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarkBinarizerConfig(OperatorConfig):
    """Settings of :class:`MarkBinarizer`.

    Parameters
    ----------
    num_marks
        Number of marks.
    tail
        Upper tail of the Poisson law at the threshold, 1e-4 as in ChromHMM.
    slope
        Initial slope of the soft call; as it grows the call becomes hard.
    background
        Initial mean of the counts where a mark is absent, over the mean of the sequence.
    excess
        Initial excess of the counts where a mark is present, over that where it is absent.
    dispersion
        Initial overdispersion of the counts.
    """

    num_marks: int = 6
    tail: float = 1e-4
    slope: float = 5.0
    background: float = 0.5
    excess: float = 5.0
    dispersion: float = 0.5

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""
        self.require_integers("num_marks")
        self.require_fractions("tail", zero_allowed=False, one_allowed=False)
        self.require_positive("slope", "background", "excess", "dispersion")


class MarkBinarizer(Operator):
    """Presence of marks from counts in bins, by a threshold that can be trained.

    Parameters
    ----------
    config
        Settings.
    rngs
        Random streams; none is used.

    Notes
    -----
    Inputs of ``apply``: ``mark_counts`` (length, num_marks) or (batch, length, num_marks), each row of the batch a
    sequence with a mean of its own; NaN where missing. Padding, after ``length`` (batch,) bins, must be missing.

    Outputs: ``histone_marks``, the probability that each mark is present, from 0 to 1, NaN where missing, as
    :class:`ChromatinStateAnnotator` reads it; ``presence_threshold`` (num_marks,) or (batch, num_marks), the count at
    which that is one half; ``presence_bound`` (length,) or (batch, length), the terms of the likelihood of the counts
    that are not the chain's.

    Untrained, a probability above one half is the call of :func:`diffbio_sc.pp.binarize`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from diffbio_sc.operators.epigenomics import MarkBinarizer, MarkBinarizerConfig
    >>> binarizer = MarkBinarizer(MarkBinarizerConfig(num_marks=1), rngs=nnx.Rngs(0))
    >>> counts = jnp.array([0.0, 1.0, 0.0, 2.0, 1.0, 12.0, 1.0, 0.0])[:, None]
    >>> result, _, _ = binarizer.apply({"mark_counts": counts}, {}, None)
    >>> (result["histone_marks"][:, 0] > 0.5).astype(int).tolist()
    [0, 0, 0, 0, 0, 1, 0, 0]
    """

    config_class: ClassVar[type[OperatorConfig]] = MarkBinarizerConfig
    required_keys: ClassVar[tuple[str, ...]] = ("mark_counts",)
    config: MarkBinarizerConfig

    def __init__(self, config: MarkBinarizerConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        marks = config.num_marks
        self.log_threshold_factor = nnx.Param(jnp.zeros(marks))
        self.log_slope = nnx.Param(jnp.full(marks, np.log(config.slope), jnp.float32))
        self.log_background = nnx.Param(jnp.full(marks, np.log(config.background), jnp.float32))
        self.log_excess = nnx.Param(jnp.full(marks, np.log(config.excess), jnp.float32))
        self.log_dispersion = nnx.Param(jnp.full((2, marks), np.log(config.dispersion), jnp.float32))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return ``histone_marks``, ``presence_threshold`` and ``presence_bound``."""
        counts, known = self._counts(data)
        logits, threshold = self._logits(counts, known)
        return {
            "histone_marks": jnp.where(known, jax.nn.sigmoid(logits), jnp.nan),
            "presence_threshold": threshold[..., 0, :],
            "presence_bound": self._bound(counts, known, logits).sum(-1),
        }

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Return minus the bound on the log-likelihood of the counts for each bin, with independent presence."""
        counts, known = self._counts(data)
        logits, _ = self._logits(counts, known)
        bins = tuple(range(known.ndim - 1))
        share = jnp.where(known, jax.nn.sigmoid(logits), 0.0).sum(bins) / jnp.maximum(known.sum(bins), 1)
        share = jnp.clip(share, 1e-6, 1.0 - 1e-6)
        spread = -share * jnp.log(share) - (1.0 - share) * jnp.log1p(-share)
        number = jnp.maximum(known.any(-1).sum(), 1)
        return -(self._bound(counts, known, logits).sum() - (spread * known.sum(bins)).sum()) / number

    def fit(
        self, data: Mapping[str, Any], *, steps: int = 300, learning_rate: float = 0.03, **options: Any
    ) -> FitReport:  # type: ignore[override]
        """Lower ``loss`` by gradient descent on all bins at once.

        Parameters
        ----------
        data
            As for ``apply``.
        steps, learning_rate
            Of Adam; the parameters are logarithms.
        options
            Further arguments of :func:`diffbio_sc.training.train`.

        Returns
        -------
        History, whether the stopping rule was met, steps and seconds.
        """
        counts, known = self._counts(data)
        counts = jnp.where(known, counts, jnp.nan)
        arrays = {"mark_counts": counts if counts.ndim == 3 else counts[None]}
        settings = {"batch_size": None, "description": "presence of marks", **options}
        return super().fit(arrays, max_epochs=steps, learning_rate=learning_rate, **settings)

    def _counts(self, data) -> tuple[Array, Array]:
        counts = as_float_array(data, "mark_counts", (2, 3))
        check_axis_size("mark_counts", counts, -1, self.config.num_marks, "config.num_marks")
        if not isinstance(counts, jax.core.Tracer):
            values = np.asarray(counts)
            bad = values[np.isinf(values) | (values < 0)]
            if bad.size:
                raise ValueError(f"data['mark_counts'] must be counts, finite and not negative, found {bad[0]:g}.")
        known = ~jnp.isnan(counts)
        return jnp.where(known, counts, 0.0), known

    def _mean(self, counts, known) -> Float[Array, "... 1 marks"]:
        mean = counts.sum(-2, keepdims=True) / jnp.maximum(known.sum(-2, keepdims=True), 1)
        return jnp.maximum(jax.lax.stop_gradient(mean), _SMALLEST_MEAN)

    def _logits(self, counts, known) -> tuple[Array, Array]:
        level = poisson_threshold(self._mean(counts, known), self.config.tail) - 0.5
        threshold = level * jnp.exp(self.log_threshold_factor[...])
        return jnp.exp(self.log_slope[...]) * (jnp.log1p(counts) - jnp.log1p(threshold)), threshold

    def _bound(self, counts, known, logits) -> Float[Array, "... marks"]:
        present = jax.nn.sigmoid(logits)
        absent_mean = self._mean(counts, known) * jnp.exp(self.log_background[...])
        present_mean = absent_mean * (1.0 + jnp.exp(self.log_excess[...]))
        dispersion = jnp.exp(self.log_dispersion[...])
        absent = negative_binomial_log_likelihood(counts, absent_mean, dispersion[0])
        there = negative_binomial_log_likelihood(counts, present_mean, dispersion[1])
        # Entropy of q from its logits.
        spread = present * jax.nn.softplus(-logits) + (1.0 - present) * jax.nn.softplus(logits)
        return jnp.where(known, present * there + (1.0 - present) * absent + spread, 0.0)


def poisson_threshold(mean: Float[Array, "..."], tail: float) -> Float[Array, "..."]:
    """Largest count whose upper tail, that count included, still holds the probability ``tail``; at least 1.

    The twin of :func:`diffbio_sc.numerics.genome.binarization.presence_thresholds`: P(X >= n) is the regularised
    incomplete gamma function of n, which falls with n, also between whole numbers.
    """
    mean = jax.lax.stop_gradient(mean)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        holds = gammainc(middle, mean) >= tail
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    ends = jnp.full_like(mean, 1e-3), 20.0 + mean + 12.0 * jnp.sqrt(mean)
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, ends)
    return jnp.maximum(jnp.floor(low + 1e-4), 1.0)
