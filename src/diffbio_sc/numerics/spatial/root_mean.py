r"""Expected roots of counts: :math:`E \sqrt{y + a}` of Poisson and negative binomial counts, at many depths at once.

From :math:`\sqrt{x} = (4 \pi)^{-1/2} \int_0^\infty (1 - e^{-t x}) t^{-3/2} dt` follows, with the generating function G,

    E sqrt(y + a) = (4 pi)^(-1/2) integral of (1 - exp(-t a) G(exp(-t))) t^(-3/2) dt,
    G(z) = (1 + alpha mu (1 - z))^(-1/alpha), or exp(-mu (1 - z)) for alpha = 0,

whose integrand in log t is smooth and falls off by powers of t at both ends: the trapezoid rule is right to 1e-8.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

_STEP = 0.5  # in log t
_SHORTEST, _LONGEST = 1e-6, 80.0  # t from the first over the largest count to the second over the offset's order
_SPOTS_AT_ONCE = 8192
_DEGREE = 16  # of the polynomial in log depth: over depths up to e^13 apart right to 1e-3


def expected_root(
    mean: Float[np.ndarray, "*shape"], dispersion: Float[np.ndarray, "*shape"], offset: float
) -> Float[np.ndarray, "*shape"]:
    """Expected ``sqrt(y + offset)`` of counts with mean mu and variance mu + dispersion mu^2."""
    mean, dispersion = np.broadcast_arrays(np.asarray(mean, np.float64), np.asarray(dispersion, np.float64))
    t = np.exp(np.arange(np.log(_SHORTEST / (mean.max(initial=0.0) + offset)), np.log(_LONGEST) + _STEP, _STEP))
    away, strength = -np.expm1(-t), dispersion[..., None]
    negative_binomial = np.log1p(strength * mean[..., None] * away) / np.where(strength > 0, strength, 1.0)
    exponent = np.where(strength > 0, negative_binomial, mean[..., None] * away)
    terms = -np.expm1(-t * offset - exponent) / np.sqrt(t)
    beyond = np.exp(-_STEP / 2.0) / -np.expm1(-_STEP / 2.0)  # the sum of a tail that falls by this factor a step
    total = terms.sum(-1) + beyond * (terms[..., 0] + 1.0 / np.sqrt(t[-1]))
    return _STEP / np.sqrt(4.0 * np.pi) * total


class RootMeans:
    """Expected roots of genes at all spots, by a polynomial in the logarithm of depth for each gene.

    Parameters
    ----------
    depth
        Depth of each spot, above 0.
    offset
        What is added to the counts.
    """

    def __init__(self, depth: Float[np.ndarray, " spots"], offset: float):
        self._offset = offset
        low, high = np.log(depth.min()), np.log(depth.max())
        half = max((high - low) / 2.0, 1e-6)
        nodes = _chebyshev_nodes()
        self._depth = np.exp((low + high) / 2.0 + half * nodes)
        # Values at the nodes times these are the coefficients of Chebyshev's polynomials.
        self._from_nodes = np.linalg.inv(np.polynomial.chebyshev.chebvander(nodes, _DEGREE))
        self._place = ((np.log(depth) - (low + high) / 2.0) / half).astype(np.float32)

    def __call__(self, mean: Float[np.ndarray, " genes"], strength: float) -> Float[np.ndarray, "genes spots"]:
        """Expected roots (genes, spots), float32, of counts with mean s m and variance s m (1 + strength s)."""
        result = np.empty((len(mean), len(self._place)), np.float32)
        for some, expected in self._parts(mean, strength):
            result[:, some] = expected
        return result

    def take_from(
        self, values: Float[np.ndarray, "genes spots"], mean: Float[np.ndarray, " genes"], strength: float
    ) -> None:
        """Subtract the expected roots, in place."""
        for some, expected in self._parts(mean, strength):
            values[:, some] -= expected

    def _parts(self, mean: np.ndarray, strength: float) -> Iterator[tuple[slice, np.ndarray]]:
        mean = np.maximum(mean, 1e-12)[:, None]
        at_nodes = expected_root(mean * self._depth, strength / mean, self._offset)
        coefficients = (at_nodes @ self._from_nodes.T).astype(np.float32)
        # Chebyshev polynomials of a few spots at a time: of all they would be the largest thing held for a spot.
        for start in range(0, len(self._place), _SPOTS_AT_ONCE):
            some = slice(start, start + _SPOTS_AT_ONCE)
            place = self._place[some]
            polynomials = np.empty((_DEGREE + 1, len(place)), np.float32)
            polynomials[0], polynomials[1] = 1.0, place
            for degree in range(2, _DEGREE + 1):
                polynomials[degree] = 2.0 * place * polynomials[degree - 1] - polynomials[degree - 2]
            yield some, coefficients @ polynomials


def expected_roots(
    means: Float[np.ndarray, "genes spots"], dispersion: Float[np.ndarray, " genes"], offset: float
) -> Float[np.ndarray, "genes spots"]:
    """Expected roots of counts with a mean of their own at each spot, float32, by a polynomial for each gene."""
    logs = np.log(np.maximum(means, 1e-12))
    low, high = logs.min(1, keepdims=True), logs.max(1, keepdims=True)
    middle, half = (low + high) / 2.0, np.maximum((high - low) / 2.0, 1e-6)
    nodes = _chebyshev_nodes()
    values = expected_root(np.exp(middle + half * nodes), dispersion[:, None], offset)
    coefficients = np.linalg.solve(np.polynomial.chebyshev.chebvander(nodes, _DEGREE), values.T).astype(np.float32)
    return np.polynomial.chebyshev.chebval(((logs - middle) / half).astype(np.float32), coefficients[:, :, None], False)


def _chebyshev_nodes() -> Float[np.ndarray, " nodes"]:
    return np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
