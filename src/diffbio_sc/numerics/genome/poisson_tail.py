r"""Upper tail of the Poisson law in log space: ln P(X >= k), finite and accurate where the probability itself is not.

P(X >= k) is the regularised incomplete gamma function P(a, x) at a = k and x the rate. From a = 32 on
it is Temme's uniform expansion (Temme 1979, SIAM Journal on Mathematical Analysis 10:757; DLMF 8.12), with

    mu = x / a - 1,   eta^2 / 2 = mu - log(1 + mu),   t = -eta sqrt(a / 2)
    P = exp(-t^2) [erfcx(t) / 2 - S],   S = (C0(eta) + C1(eta) / a + C2(eta) / a^2) / sqrt(2 pi a)

where erfcx(t) = exp(t^2) erfc(t) keeps the factor that underflows outside. Where P is above one half its complement is
computed and ln P is log1p of it, so that small values of -ln P keep their digits too. Below a = 32 the power series
and the continued fraction serve.

This module loads without JAX.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from diffbio_sc.numerics.lines import inner_loop

__all__ = ["log_survival", "log_survival_scalar"]

# Taylor coefficients of C0, C1, C2 about eta = 0, from exact rational recursion; radius of convergence 3.54.
C0 = (
    -3.333333333333333e-01, 8.333333333333333e-02, -1.4814814814814815e-02, 1.1574074074074073e-03,
    3.527336860670194e-04, -1.787551440329218e-04, 3.919263178522438e-05, -2.185448510679992e-06,
    -1.85406221071516e-06, 8.296711340953087e-07, -1.7665952736826078e-07, 6.707853543401498e-09,
    1.0261809784240309e-08, -4.382036018453353e-09, 9.14769958223679e-10, -2.5514193994946248e-11,
    -5.830772132550426e-11, 2.4361948020667415e-11, -5.0276692801141755e-12, 1.1004392031956135e-13,
)  # fmt: skip
C1 = (
    -1.851851851851852e-03, -3.472222222222222e-03, 2.6455026455026454e-03, -9.902263374485596e-04,
    2.0576131687242798e-04, -4.018775720164609e-07, -1.8098550334489977e-05, 7.64916091608111e-06,
    -1.6120900894563446e-06, 4.647127802807434e-09, 1.378633446915721e-07, -5.752545603517705e-08,
    1.1951628599778148e-08, -1.7543241719747647e-11, -1.0091543710600413e-09, 4.162792991842583e-10,
)  # fmt: skip
C2 = (
    4.133597883597883e-03, -2.6813271604938273e-03, 7.716049382716049e-04, 2.0093878600823047e-06,
    -1.073665322636516e-04, 5.2923448829120125e-05, -1.2760635188618728e-05, 3.423578734096138e-08,
    1.3721957309062934e-06, -6.298992138380055e-07, 1.4280614206064242e-07, -2.0477098421990866e-10,
)  # fmt: skip
_LARGE = 32.0
# As arrays: of tuples each length is compiled apart.
_C0, _C1, _C2 = (np.array(coefficients) for coefficients in (C0, C1, C2))


def log_survival(counts: Any, rate: Any) -> np.ndarray:
    """Natural log of P(X >= counts) for X Poisson of mean ``rate``, in float64.

    Parameters
    ----------
    counts
        Counts k, any shape. Values between integers give the incomplete gamma function, which interpolates.
    rate
        Means, broadcast against ``counts``; not negative.

    Returns
    -------
    Log probabilities, accurate to about 1e-7 relative: 0 where k <= 0, -inf where the rate is 0 and k > 0, NaN where
    an input is NaN or the rate is negative.
    """
    counts, rate = np.broadcast_arrays(np.asarray(counts, np.float64), np.asarray(rate, np.float64))
    result = np.empty(counts.shape)
    _log_survival_array(np.ascontiguousarray(counts).ravel(), np.ascontiguousarray(rate).ravel(), result.ravel())
    return result


@inner_loop
def _polynomial(coefficients, x):
    value = 0.0
    for index in range(len(coefficients) - 1, -1, -1):
        value = value * x + coefficients[index]
    return value


@inner_loop
def _erfcx_positive(t):
    if t < 25.0:
        return math.exp(t * t) * math.erfc(t)
    inverse = 0.5 / (t * t)
    return (1.0 - inverse * (1.0 - 3.0 * inverse * (1.0 - 5.0 * inverse))) / (t * math.sqrt(math.pi))


@inner_loop
def _half_eta_squared(mu, ratio):
    """Return mu - log(ratio), ratio = 1 + mu, without cancellation."""
    if abs(mu) > 0.4:
        return mu - math.log(ratio)
    r = mu / (2.0 + mu)
    square = r * r
    total, power = 0.0, 1.0
    for index in range(16):
        total += power / (2 * index + 3)
        power *= square
    return r * (mu - 2.0 * square * total)


@inner_loop
def log_survival_scalar(count, rate):
    """One value of :func:`log_survival`, to be called from compiled code."""
    if not (rate >= 0.0) or math.isnan(count):
        return math.nan
    if count <= 0.0:
        return 0.0
    if rate == 0.0:
        return -math.inf
    if math.isinf(rate):
        return 0.0
    if math.isinf(count):
        return -math.inf
    if count < _LARGE:
        front = count * math.log(rate) - rate - math.lgamma(count)
        if rate < count + 1.0:
            term = 1.0 / count
            total = term
            place = count
            while term > 1e-17 * total:
                place += 1.0
                term *= rate / place
                total += term
            return min(front + math.log(total), 0.0)
        # Legendre's continued fraction of the complement, by the modified Lentz method.
        b = rate + 1.0 - count
        c = 1e300
        d = 1.0 / b
        fraction = d
        for index in range(1, 1000):
            a = -index * (index - count)
            b += 2.0
            d = a * d + b
            if abs(d) < 1e-300:
                d = 1e-300
            c = b + a / c
            if abs(c) < 1e-300:
                c = 1e-300
            d = 1.0 / d
            change = d * c
            fraction *= change
            if abs(change - 1.0) < 1e-15:
                break
        return math.log1p(-math.exp(front) * fraction)
    mu = (rate - count) / count
    half = _half_eta_squared(mu, rate / count)
    eta = math.copysign(math.sqrt(2.0 * half), mu)
    if abs(eta) < 1.0:
        c0, c1, c2 = _polynomial(_C0, eta), _polynomial(_C1, eta), _polynomial(_C2, eta)
    else:
        u, v = 1.0 / mu, 1.0 / eta
        c0 = u - v
        c1 = v**3 - u**3 - u**2 - u / 12.0
        c2 = -3.0 * v**5 + 3.0 * u**5 + 5.0 * u**4 + 25.0 / 12.0 * u**3 + u**2 / 12.0 + u / 288.0
    correction = (c0 + (c1 + c2 / count) / count) / math.sqrt(2.0 * math.pi * count)
    exponent = count * half
    middle = 0.5 * _erfcx_positive(math.sqrt(exponent))
    if eta <= 0.0:
        return math.log(middle - correction) - exponent
    return math.log1p(-math.exp(-exponent) * (middle + correction))


@numba.njit(cache=True, nogil=True)
def _log_survival_array(counts, rates, result):
    for index in range(len(counts)):
        result[index] = log_survival_scalar(counts[index], rates[index])
