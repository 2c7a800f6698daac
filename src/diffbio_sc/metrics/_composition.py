from __future__ import annotations

import numpy as np
import pandas as pd

from diffbio_sc._checks import as_numbers
from diffbio_sc._options import check_options

_TINY = 1e-300


def composition(estimate: pd.DataFrame | np.ndarray, truth: pd.DataFrame | np.ndarray) -> dict[str, float]:
    """Score estimated compositions against the truth.

    Parameters
    ----------
    estimate
        Spots by cell types. Rows are scaled to sum 1; a row that is missing or sums to 0 counts as uniform.
    truth
        Spots by cell types, rows sum to 1. Tables are aligned by the names of their rows and columns.

    Returns
    -------
    Dict of

    ``rmse``, ``jsd``
        Root mean square error and Jensen-Shannon divergence (base 2), means over spots.
    ``aupr``
        Area under the precision-recall curve (average precision) of presence, truth above 0, over all pairs of spot
        and type.
    ``pearson``
        Correlation over spots, mean of the types present in the truth.
    ``absent_mass``
        Mean proportion put on types absent from all of the truth.
    ``failed_spots``
        Rows that counted as uniform.

    Raises
    ------
    ValueError
        If shapes or names differ.

    Examples
    --------
    >>> import numpy as np
    >>> import diffbio_sc as dbio
    >>> scores = dbio.metrics.composition(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    >>> float(scores["rmse"]), float(scores["aupr"])
    (0.0, 1.0)
    """
    check_options(composition, locals())
    if isinstance(estimate, pd.DataFrame) and isinstance(truth, pd.DataFrame):
        for axis, what in ((0, "row"), (1, "column")):
            if set(estimate.axes[axis]) != set(truth.axes[axis]):
                different = sorted(map(str, set(estimate.axes[axis]) ^ set(truth.axes[axis])))
                raise ValueError(f"estimate and truth must have the same {what} names; only in one: {different[:5]}.")
        estimate = estimate.loc[truth.index, truth.columns]
    p, t = as_numbers(estimate, "estimate"), as_numbers(truth, "truth")
    if p.shape != t.shape or p.ndim != 2:
        raise ValueError(f"estimate and truth must have the same two-axis shape, found {p.shape} and {t.shape}.")
    failed = ~np.isfinite(p).all(1) | (np.nan_to_num(p).sum(1) <= 0)
    p = np.where(np.isfinite(p), np.maximum(p, 0.0), 0.0)
    p[failed] = 1.0
    p /= p.sum(1, keepdims=True)
    present = t.sum(0) > 0
    return {
        "rmse": float(np.sqrt(((p - t) ** 2).mean(1)).mean()),
        "jsd": float(_jensen_shannon(p, t).mean()),
        "aupr": _average_precision(p.ravel(), (t > 0).ravel()),
        "pearson": float(_pearson(p[:, present], t[:, present]).mean()),
        "absent_mass": float(p[:, ~present].sum(1).mean()),
        "failed_spots": int(failed.sum()),
    }


def _jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    middle = (p + q) / 2
    parts = [np.where(a > 0, a * np.log2(np.maximum(a, _TINY) / np.maximum(middle, _TINY)), 0.0).sum(1) for a in (p, q)]
    return (parts[0] + parts[1]) / 2


def _average_precision(values: np.ndarray, present: np.ndarray) -> float:
    order = np.argsort(-values, kind="stable")
    values, hits = values[order], np.cumsum(present[order])
    last_of_ties = np.append(values[1:] != values[:-1], True)
    precision = (hits / np.arange(1, len(hits) + 1))[last_of_ties]
    recall = hits[last_of_ties] / max(hits[-1], 1)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.where(norm > 1e-12, (a * b).sum(0) / np.maximum(norm, 1e-12), 0.0)
