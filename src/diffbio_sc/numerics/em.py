"""Expectation maximisation with extrapolated steps: one loop for all models that are fitted so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np

__all__ = ["EMResult", "maximize"]

Parameters = TypeVar("Parameters")

_LARGEST_STEP = 1e4


class EMResult(NamedTuple, Generic[Parameters]):
    """What the loop found.

    Attributes
    ----------
    parameters
        The last parameters whose objective is known to be the best.
    objective
        Their objective.
    history
        Objective of the accepted parameters, one value a step, never falling.
    converged
        Whether the gain fell below the tolerance before the steps ran out.
    steps
        EM steps taken, those that were thrown away included.
    """

    parameters: Parameters
    objective: float
    history: np.ndarray
    converged: bool
    steps: int


def maximize(
    step: Callable[[Parameters], tuple[Parameters, float]],
    start: Parameters,
    *,
    to_vector: Callable[[Parameters], np.ndarray],
    from_vector: Callable[[np.ndarray, Parameters], Parameters],
    max_steps: int = 200,
    tolerance: float = 1e-3,
    accelerate: bool = True,
    stop: Callable[[np.ndarray], bool] | None = None,
) -> EMResult[Parameters]:
    """Climb an objective by EM steps, with squared extrapolation (SQUAREM, scheme S3).

    Two plain steps give a direction r and its change v; the next step starts from x + 2 s r + s^2 v with s = |r| / |v|.
    If the objective there is below that of the second plain step, the extrapolation is thrown away and that step taken:
    the history never falls (Varadhan, Roland 2008, Scandinavian Journal of Statistics 35:335).

    Parameters
    ----------
    step
        Takes parameters, returns those after one EM step and the objective *before* it.
    start
        First parameters.
    to_vector
        Parameters as a vector, on a scale on which steps may be extrapolated.
    from_vector
        Parameters from a vector, brought back into their range; the second argument are parameters of the same kind.
    max_steps
        Most EM steps.
    tolerance
        The loop ends when a plain step gains less than this, in units of the objective.
    accelerate
        Whether to extrapolate.
    stop
        Asked after each accepted step, with the history, whether to end early.

    Returns
    -------
    Parameters, objective, history, convergence and steps.
    """
    taken = 0
    history: list[float] = []
    now = start
    best, best_objective = start, -np.inf
    fallback: Parameters | None = None
    converged = False
    vectors: list[np.ndarray] = []
    longest = 4.0
    while taken < max_steps:
        after, objective = step(now)
        taken += 1
        if fallback is not None and not objective >= best_objective - 1e-10 * abs(best_objective):
            # The extrapolation overshot; its step length is not tried again at once.
            now, fallback, vectors = fallback, None, []
            longest = max(longest / 4.0, 1.5)
            continue
        if not np.isfinite(objective):
            return EMResult(best if history else now, objective, np.array(history), False, taken)
        if fallback is not None:
            longest = min(longest * 2.0, _LARGEST_STEP)
        plain = bool(history) and fallback is None
        gain = objective - best_objective
        fallback = None
        best, best_objective = now, objective
        history.append(objective)
        if plain and gain < tolerance:
            converged = True
            break
        if stop is not None and stop(np.array(history)):
            break
        if not accelerate:
            now = after
            continue
        vectors.append(to_vector(now))
        if len(vectors) < 2:
            now = after
            continue
        last = to_vector(after)
        change = vectors[1] - vectors[0]
        curve = last - 2.0 * vectors[1] + vectors[0]
        size = float(np.linalg.norm(curve))
        length = min(float(np.linalg.norm(change)) / size, longest) if size > 0 else 1.0
        first = vectors[0]
        vectors = []
        if length <= 1.0:
            now = after
            continue
        fallback = after
        now = from_vector(first + 2.0 * length * change + length**2 * curve, after)
    return EMResult(best, float(best_objective), np.array(history), converged, taken)
