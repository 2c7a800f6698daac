"""How well a score ranks 1 above 0, under many weightings of the same items at once, as resampling needs it."""

from __future__ import annotations

import numba
import numpy as np
from jaxtyping import Float, Int

__all__ = ["weighted_auprc", "weighted_auroc"]


def weighted_auroc(
    truth: Float[np.ndarray, " n"],
    score: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "draws groups"],
    groups: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " draws"]:
    """Area under the receiver operating characteristic, ties counted by half; NaN where one class has no weight.

    Parameters
    ----------
    truth
        0 or 1.
    score
        Any numbers.
    weights
        Weight of each group in each draw, not negative.
    groups
        Group of each item: items of one group are drawn together.
    """
    return _measure(truth, score, weights, groups, precision=False)


def weighted_auprc(
    truth: Float[np.ndarray, " n"],
    score: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "draws groups"],
    groups: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " draws"]:
    """Average precision: precision at each score, weighted by the recall that it adds; NaN without positives.

    Parameters as in :func:`weighted_auroc`.
    """
    return _measure(truth, score, weights, groups, precision=True)


def _measure(truth, score, weights, groups, *, precision: bool) -> np.ndarray:
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last_of_ties = np.concatenate([ordered[1:] != ordered[:-1], [True]])
    return _sweep(truth[order] > 0, last_of_ties, groups[order], np.asarray(weights, np.float64), precision)


@numba.njit(cache=True)
def _sweep(positive, last_of_ties, groups, weights, precision):  # pragma: no cover
    """Go down the scores; items of one score come in together."""
    draws, number = len(weights), len(positive)
    result = np.empty(draws)
    for draw in range(draws):
        above = below = area = 0.0  # weight of positives and negatives so far
        new_above = new_below = 0.0
        for place in range(number):
            weight = weights[draw, groups[place]]
            if positive[place]:
                new_above += weight
            else:
                new_below += weight
            if last_of_ties[place]:
                if precision:
                    if new_above > 0:
                        area += new_above * (above + new_above) / (above + new_above + below + new_below)
                else:
                    area += new_below * (above + new_above / 2)
                above += new_above
                below += new_below
                new_above = new_below = 0.0
        scale = above if precision else above * below
        result[draw] = area / scale if scale > 0 else np.nan
    return result
