"""What one pass over the chains says about the parameters of a hidden Markov model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["ChainStatistics"]


class ChainStatistics(NamedTuple):
    """Expected statistics of sequences under a hidden Markov model, in float64.

    They are the derivatives of the log-likelihood by log-probabilities.

    Attributes
    ----------
    log_likelihood
        Log-likelihood of all sequences.
    initial
        Expected number of sequences that begin in each state (K,).
    transitions
        Expected number of transitions between states (K, K).
    occupancy
        Expected number of positions in each state: one row for each observation pattern, or summed elsewhere where
        observations are too many to be told apart.
    """

    log_likelihood: float
    initial: np.ndarray
    transitions: np.ndarray
    occupancy: np.ndarray
