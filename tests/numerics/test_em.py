"""The EM loop, on a mixture whose maximum is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from diffbio_sc.numerics import em

# Linkage data of Rao (1965), the textbook example of EM: counts of four classes with probabilities
# (1/2 + t/4, (1-t)/4, (1-t)/4, t/4).
COUNTS = np.array([125.0, 18.0, 20.0, 34.0])


def log_likelihood(t):
    return float(COUNTS @ np.log([0.5 + t / 4, (1 - t) / 4, (1 - t) / 4, t / 4]))


def step(t):
    hidden = COUNTS[0] * (t / 4) / (0.5 + t / 4)
    return (hidden + COUNTS[3]) / (hidden + COUNTS[1] + COUNTS[2] + COUNTS[3]), log_likelihood(t)


OPTIONS = {
    "to_vector": lambda t: np.array([t]),
    "from_vector": lambda vector, _: float(np.clip(vector[0], 1e-6, 1 - 1e-6)),
}


@pytest.mark.parametrize("accelerate", [True, False])
def test_the_maximum_is_found_and_the_history_never_falls(accelerate):
    exact = minimize_scalar(lambda t: -log_likelihood(t), bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).x
    result = em.maximize(step, 0.1, tolerance=1e-12, accelerate=accelerate, **OPTIONS)
    assert result.converged
    assert result.parameters == pytest.approx(exact, abs=1e-6)
    assert result.objective == pytest.approx(log_likelihood(exact), abs=1e-9)
    assert (np.diff(result.history) >= -1e-9).all()


def slow(x, rate=0.99):
    """A step that goes a hundredth of the way to 3."""
    return 3.0 + rate * (x - 3.0), -((x - 3.0) ** 2)


def test_extrapolation_saves_most_steps_of_a_slow_climb():
    plain, fast = (
        em.maximize(
            slow,
            0.0,
            to_vector=lambda x: np.array([x]),
            from_vector=lambda vector, _: float(vector[0]),
            max_steps=2000,
            tolerance=1e-10,
            accelerate=accelerate,
        )
        for accelerate in (False, True)
    )
    assert fast.parameters == pytest.approx(3.0, abs=1e-4)
    assert fast.steps < plain.steps / 10


def test_an_extrapolation_that_falls_is_thrown_away():
    def wrong(vector, near):
        return 100.0  # far off whatever the vector says

    result = em.maximize(slow, 0.0, to_vector=lambda x: np.array([x]), from_vector=wrong, max_steps=400, tolerance=0.0)
    assert (np.diff(result.history) >= 0).all()
    assert 0.0 < result.parameters <= 3.0
    assert result.steps == 400


def test_the_loop_ends_when_asked_or_when_steps_run_out():
    result = em.maximize(slow, 0.0, max_steps=50, stop=lambda history: len(history) == 7, **OPTIONS)
    assert len(result.history) == 7
    assert not result.converged
    assert em.maximize(slow, 0.0, max_steps=5, tolerance=0.0, **OPTIONS).steps == 5


def test_a_start_of_no_likelihood_says_so():
    result = em.maximize(lambda x: (x, -np.inf), 0.5, **OPTIONS)
    assert result.objective == -np.inf
    assert not result.converged
