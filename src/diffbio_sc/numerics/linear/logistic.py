"""Logistic regression of many outputs with one ridge penalty, chosen on rows that were held out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from diffbio_sc.numerics.linear.design import Design

__all__ = ["LogisticFit", "choose_logistic", "cross_entropy", "fit_logistic"]

# L-BFGS from the base rates: the validation loss no longer changes in its fourth digit.
_MOST_STEPS = 60
_TOLERANCE = 1e-6
# A logit of base rate is no further from 0 than that of one success among so many rows more than there are.
_PSEUDOCOUNT = 0.5


class LogisticFit(NamedTuple):
    """A fitted logistic regression.

    Attributes
    ----------
    weights
        (columns, outputs), float32.
    intercept
        (outputs,), float32.
    penalty
        Penalty: half of it times the squared weights is added to the average loss.
    losses
        Cross-entropy of the held-out rows at each penalty tried, by penalty; empty if none were held out.
    """

    weights: Float[np.ndarray, "columns outputs"]
    intercept: Float[np.ndarray, " outputs"]
    penalty: float
    losses: dict[float, float]

    def logits(self, design: Design) -> Float[np.ndarray, "rows outputs"]:
        """Return log-odds of rows."""
        return design.products(self.weights) + self.intercept


def cross_entropy(logits: Float[np.ndarray, "rows outputs"], labels: Float[np.ndarray, "rows outputs"]) -> float:
    """Return the average cross-entropy of the labels that are there, in nats; NaN if there are none."""
    known = np.isfinite(labels)
    loss = np.logaddexp(0.0, logits) - logits * np.where(known, labels, 0.0)
    return float(loss[known].mean(dtype=np.float64)) if known.any() else float("nan")


def fit_logistic(
    design: Design,
    labels: Float[np.ndarray, "rows outputs"],
    penalty: float,
    *,
    start: LogisticFit | None = None,
) -> LogisticFit:
    """Fit by L-BFGS, all outputs at once.

    Parameters
    ----------
    design
        Columns; they are centred, so that the intercept has a direction of its own.
    labels
        0, 1, or NaN where missing.
    penalty
        Half of it times the squared weights is added to the loss, which averages over rows, of each output.
    start
        Fit at another penalty to start from.
    """
    known = np.isfinite(labels)
    targets = np.where(known, labels, 0.0).astype(np.float32)
    counts = np.maximum(known.sum(0), 1).astype(np.float32)
    share = (known / counts).astype(np.float32)
    mean = design.transposed_products(np.full((design.size, 1), 1.0 / design.size, np.float32))[:, 0]
    shape = (design.width, labels.shape[1])
    size = shape[0] * shape[1]

    def objective(vector: np.ndarray) -> tuple[float, np.ndarray]:
        weights, intercept = vector[:size].reshape(shape).astype(np.float32), vector[size:].astype(np.float32)
        logits = design.products(weights) + (intercept - mean @ weights)
        loss = np.logaddexp(0.0, logits) - logits * targets
        residual = (_sigmoid(logits) - targets) * share
        total = residual.sum(0, dtype=np.float64)
        slope = design.transposed_products(residual) - np.outer(mean, total) + penalty * weights
        value = float((loss * share).sum(dtype=np.float64)) + 0.5 * penalty * float((vector[:size] ** 2).sum())
        return value, np.concatenate([slope.ravel().astype(np.float64), total])

    if start is None:
        rate = (targets.sum(0) + _PSEUDOCOUNT) / (counts + 2 * _PSEUDOCOUNT)
        first = np.concatenate([np.zeros(size), np.log(rate / (1 - rate))])
    else:
        first = np.concatenate([start.weights.ravel(), start.intercept + mean @ start.weights]).astype(np.float64)
    options = {"maxiter": _MOST_STEPS, "maxcor": 8, "ftol": _TOLERANCE}
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x
    weights = found[:size].reshape(shape).astype(np.float32)
    return LogisticFit(weights, (found[size:] - mean @ weights).astype(np.float32), float(penalty), {})


def choose_logistic(
    design: Design,
    labels: Float[np.ndarray, "rows outputs"],
    held_out: Design,
    held_out_labels: Float[np.ndarray, "rows outputs"],
    *,
    first: float,
    factor: float = 10**0.5,
    most: int = 6,
) -> LogisticFit:
    """Fit with the penalty that has the lowest cross-entropy on rows held out.

    Parameters
    ----------
    design, labels
        Rows to fit to.
    held_out, held_out_labels
        Rows to judge by.
    first
        Penalty to begin with. The search goes on in the direction in which the loss falls, until it rises.
    factor
        Ratio of neighbouring penalties.
    most
        Most penalties to try.
    """

    def attempt(penalty: float, start: LogisticFit | None) -> LogisticFit:
        fit = fit_logistic(design, labels, penalty, start=start)
        losses[penalty] = cross_entropy(fit.logits(held_out), held_out_labels)
        return fit

    losses: dict[float, float] = {}
    best = attempt(first, None)
    for direction in (1 / factor, factor):
        while len(losses) < most:
            penalty = best.penalty * direction
            if penalty in losses:
                break
            fit = attempt(penalty, best)
            if not losses[penalty] < losses[best.penalty]:
                break
            best = fit
    return best._replace(losses=losses)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(logits))
    return np.where(logits > 0, 1 / (1 + small), small / (1 + small))
