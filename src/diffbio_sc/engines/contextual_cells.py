"""Cell types that a model of regions has not seen: weighted copies of those that it has, by expression.

The copy is that of the nearest cell type, or an average that falls off with the distance in expression. How fast is
chosen by taking each seen cell type in turn for one that was not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from diffbio_sc.numerics.ranking import auroc, varying_rows

__all__ = ["CellCopies", "choose_copies", "context_codes", "random_codes"]

# Softness of the average: 0 is the nearest cell type, infinity the mean of all.
_SOFTNESS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, np.inf)
_MOST_COMPONENTS = 16


class CellCopies(NamedTuple):
    """How cell types that were not seen are made of those that were.

    Attributes
    ----------
    context
        Expression in the seen cell types that have a context (cells, factors).
    columns
        Their columns in the model.
    softness
        How far beyond the nearest cell type the average reaches.
    report
        ``nearest``, ``weighted``, ``mean`` and ``ceiling``: mean AUROC over varying validation regions of each seen
        cell type, copied from the others or, the ceiling, predicted by the model that was fitted to it.
    """

    context: Float[np.ndarray, "cells factors"]
    columns: np.ndarray
    softness: float
    report: dict[str, Any]

    def weights(self, context: Float[np.ndarray, "new factors"]) -> Float[np.ndarray, "new cells"]:
        """Return the weight of each seen cell type in new ones; rows sum to 1."""
        return _weights(_similarity(context, self.context), self.softness)


def choose_copies(
    context: Float[np.ndarray, "cells factors"],
    columns: np.ndarray,
    labels: Float[np.ndarray, "rows all_cells"],
    logits: Float[np.ndarray, "rows all_cells"],
) -> CellCopies:
    """Choose the softness on regions that were not trained on.

    Parameters
    ----------
    context
        Expression in the cell types that have one.
    columns
        Their columns in ``labels`` and ``logits``.
    labels, logits
        Of validation regions.
    """
    labels, logits = labels[:, columns], logits[:, columns]
    varies = varying_rows(labels)
    labels, logits = labels[varies], logits[varies]
    similarity = np.stack(
        [np.insert(_similarity(context[[c]], np.delete(context, c, 0))[0], c, -np.inf) for c in range(len(context))]
    )
    scores: dict[float, float] = {}
    if len(context) > 2:
        for softness in _SOFTNESS:
            scores[softness] = _mean_auroc(labels, logits @ _weights(similarity, softness).T)
    usable = {softness: score for softness, score in scores.items() if np.isfinite(score)}
    best = max(usable, key=lambda softness: usable[softness]) if usable else 0.0
    report = {
        "nearest": scores.get(0.0, float("nan")),
        "weighted": scores.get(best, float("nan")),
        "mean": scores.get(np.inf, float("nan")),
        "ceiling": _mean_auroc(labels, logits),
        "softness": float(best),
    }
    return CellCopies(context, columns, float(best), report)


def context_codes(context: Float[np.ndarray, "cells factors"]) -> Float[np.ndarray, "cells codes"]:
    """Return contexts of cell types, whitened; one without context (a row of NaN) has a code of its own.

    The first code is the same for all that have a context: what they share. The others are what sets them apart, and of
    as many as there are cell types all codes together turn the cell types, and stretch nothing.
    """
    with_context = np.isfinite(context).all(1)
    expression = context[with_context]
    spread = expression.std(0)
    scaled = (expression - expression.mean(0)) / np.where(spread > 0, spread, 1.0)
    left, values, _ = np.linalg.svd(scaled, full_matrices=False)
    kept = values > 1e-6 * max(float(values.max(initial=0.0)), 1e-12)
    kept[_MOST_COMPONENTS:] = False
    shared = np.full((len(expression), 1), 1 / np.sqrt(len(expression)))
    known = np.concatenate([shared, left[:, kept]], axis=1)
    others = int((~with_context).sum())
    codes = np.zeros((len(context), known.shape[1] + others))
    codes[with_context, : known.shape[1]] = known
    codes[~with_context, known.shape[1] :] = np.eye(others)
    return codes.astype(np.float32)


def random_codes(cells: int, generator: np.random.Generator) -> Float[np.ndarray, "cells codes"]:
    """Return a random code for each cell type, at right angles to each other: the control of a context."""
    return np.linalg.qr(generator.normal(size=(cells, cells)))[0].astype(np.float32)


def _similarity(new: np.ndarray, seen: np.ndarray) -> Float[np.ndarray, "new seen"]:
    """Correlation of expression, each factor measured by its mean and spread over the seen cell types."""
    spread = seen.std(0)
    varies = spread > 0
    if not varies.any():
        return np.zeros((len(new), len(seen)))
    one, other = ((values[:, varies] - seen[:, varies].mean(0)) / spread[varies] for values in (new, seen))
    one, other = (values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12) for values in (one, other))
    return one @ other.T


def _weights(similarity: np.ndarray, softness: float) -> np.ndarray:
    best = similarity.max(1, keepdims=True)
    if softness == 0:
        nearest = (similarity == best).astype(np.float64)
        return nearest / nearest.sum(1, keepdims=True)
    finite = np.isfinite(similarity)
    weights = np.where(finite, np.exp(np.where(finite, similarity - best, 0.0) / softness), 0.0)
    return weights / weights.sum(1, keepdims=True)


def _mean_auroc(labels: np.ndarray, logits: np.ndarray) -> float:
    values = np.array([auroc(labels[:, j], logits[:, j]) for j in range(labels.shape[1])])
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
