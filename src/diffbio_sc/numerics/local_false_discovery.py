"""Local false discovery rates of tests whose power differs, and is told by a covariate."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp

_NODES = 7  # of effects: Gauss-Hermite, exact for polynomials of degree 13
# Of the four parameters, before any test: a tenth of the tests have effects, or 4 to 23 % (two standard deviations).
# A few hundred tests of some power overrule that; where hardly any has power, nothing else tells the share.
_START = np.array([np.log(1.0 / 9.0), 0.0, 0.5, 0.0])
_PRIOR_SD = np.array([0.5, 2.0, 1.0, 1.0])
_LARGEST_LOG = 20.0


def local_false_discovery(log_p: Float[np.ndarray, " tests"], covariate: Float[np.ndarray, " tests"]) -> np.ndarray:
    r"""Probability that the null hypothesis of each test holds, given its p-value and covariate; NaN where untested.

    Minus log p is exponential of mean 1 under the null hypothesis, and taken for exponential of mean

    .. math:: 1 + e^{b_0 + b_1 x + s \epsilon}, \qquad \epsilon \sim N(0, 1)

    otherwise: how far a test can get changes with its covariate x (information), and effects differ. The four
    parameters, share of effects, :math:`b_0`, :math:`b_1` and s, are those of highest posterior density under normal
    priors. A p-value of a test with little information is weaker evidence than the same of one that would have
    seen an effect, and a large p-value of the latter speaks against one (Efron 2008, Statistical Science 23:1; with
    covariates Lei and Fithian 2018, JRSS B 80:649).

    Parameters
    ----------
    log_p
        Natural log of p-values, NaN where untested.
    covariate
        Of each test, independent of the p-value under the null hypothesis. Only differences count, in units of their
        standard deviation.
    """
    tested = np.isfinite(log_p)
    result = np.full(len(log_p), np.nan)
    if not tested.any():
        return result
    surprise, x = -log_p[tested], covariate[tested]
    x = (x - x.mean()) / max(x.std(), 1e-12)
    nodes, shares = np.polynomial.hermite_e.hermegauss(_NODES)
    log_shares = np.log(shares / shares.sum())

    def parts(parameters: np.ndarray):
        """Log density with an effect by node, and its derivative by the exponent of the mean."""
        _, level, slope, log_width = parameters
        exponent = level + slope * x[:, None] + np.exp(log_width) * nodes
        odds = np.exp(np.minimum(exponent, _LARGEST_LOG))
        mean = 1.0 + odds
        log_density = log_shares - np.log(mean) - surprise[:, None] / mean
        return log_density, (surprise[:, None] / mean - 1.0) * odds / mean

    def loss(parameters: np.ndarray):
        log_density, change = parts(parameters)
        log_effect = log_expit(parameters[0]) + logsumexp(log_density, 1)
        log_total = np.logaddexp(log_expit(-parameters[0]) - surprise, log_effect)
        posterior = np.exp(log_expit(parameters[0]) + log_density - log_total[:, None])
        by_exponent = posterior * change
        gradient = [
            posterior.sum() - len(x) * expit(parameters[0]),
            by_exponent.sum(),
            x @ by_exponent.sum(1),
            np.exp(parameters[3]) * (by_exponent.sum(0) @ nodes),
        ]
        away = (parameters - _START) / _PRIOR_SD
        return 0.5 * away @ away - log_total.sum(), away / _PRIOR_SD - np.array(gradient)

    best = minimize(loss, _START, jac=True, method="L-BFGS-B").x
    log_null = log_expit(-best[0]) - surprise
    log_effect = log_expit(best[0]) + logsumexp(parts(best)[0], 1)
    result[tested] = expit(log_null - log_effect)
    return result
