"""Covariance functions of Gaussian processes on spots, all of unit variance but the linear one."""

from __future__ import annotations

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float

KERNELS = ("rbf", "matern32", "matern52", "periodic", "linear")


def squared_distances(
    first: Float[Array, "spots axes"], second: Float[Array, "others axes"]
) -> Float[Array, "spots others"]:
    """Squared Euclidean distances, from differences: exact for near points far from the origin."""
    return sum((first[:, None, axis] - second[None, :, axis]) ** 2 for axis in range(first.shape[1]))


def rbf(squared_distance: Float[Array, "..."], lengthscale: Float[Array, ""] | float) -> Float[Array, "..."]:
    r"""Squared exponential kernel :math:`\exp(-d^2 / 2\ell^2)`, of numpy arrays by numpy, of JAX arrays by JAX."""
    xp = np if isinstance(squared_distance, np.ndarray | np.floating) else jnp
    return xp.exp((-0.5 / lengthscale**2) * squared_distance)


def matern32(squared_distance: Float[Array, "..."], lengthscale: Float[Array, ""]) -> Float[Array, "..."]:
    r"""Matérn kernel of order 3/2, :math:`(1 + a) e^{-a}`, :math:`a = \sqrt3 d / \ell`."""
    scaled = jnp.sqrt(3.0) * _root(squared_distance) / lengthscale
    return (1.0 + scaled) * jnp.exp(-scaled)


def matern52(squared_distance: Float[Array, "..."], lengthscale: Float[Array, ""]) -> Float[Array, "..."]:
    r"""Matérn kernel of order 5/2, :math:`(1 + a + a^2/3) e^{-a}`, :math:`a = \sqrt5 d / \ell`."""
    scaled = jnp.sqrt(5.0) * _root(squared_distance) / lengthscale
    return (1.0 + scaled + scaled**2 / 3.0) * jnp.exp(-scaled)


def periodic(
    first: Float[Array, "spots axes"],
    second: Float[Array, "others axes"],
    lengthscale: Float[Array, ""],
    period: Float[Array, ""] | float,
) -> Float[Array, "spots others"]:
    r"""Periodic kernel :math:`\exp(-2 \sum_a \sin^2(\pi (x_a - y_a) / p) / \ell^2)`.

    A product over the axes: the periodic function of the Euclidean distance is not positive definite in the plane.
    The lengthscale is in units of the period here.
    """
    phase = sum(
        jnp.sin(jnp.pi * (first[:, None, axis] - second[None, :, axis]) / period) ** 2 for axis in range(first.shape[1])
    )
    return jnp.exp(-2.0 * phase / lengthscale**2)


def linear(
    first: Float[Array, "spots axes"], second: Float[Array, "others axes"], lengthscale: Float[Array, ""]
) -> Float[Array, "spots others"]:
    r"""Linear kernel :math:`\langle x, y \rangle / \ell^2` of coordinates that the caller has centred: a gradient."""
    return (first @ second.T) / lengthscale**2


def kernel_matrix(
    coordinates: Float[Array, "spots axes"],
    lengthscale: Float[Array, ""] | float,
    kind: str = "rbf",
    period: Float[Array, ""] | float = 1.0,
    other: Float[Array, "others axes"] | None = None,
) -> Float[Array, "spots others"]:
    """Kernel between all spots, or between spots and ``other`` points.

    Parameters
    ----------
    coordinates
        Positions of the spots.
    lengthscale
        Range of the kernel, in units of the coordinates (of the period, for the periodic kernel).
    kind
        One of :data:`KERNELS`. All but ``linear`` have a unit diagonal; ``linear`` is about the mean of
        ``coordinates``.
    period
        Period of the periodic kernel, in units of the coordinates.
    other
        Second set of points; default the spots themselves.

    Raises
    ------
    ValueError
        If ``kind`` is unknown.
    """
    second = coordinates if other is None else other
    lengthscale = jnp.asarray(lengthscale, coordinates.dtype)
    if kind == "periodic":
        return periodic(coordinates, second, lengthscale, period)
    if kind == "linear":
        centre = coordinates.mean(0)
        return linear(coordinates - centre, second - centre, lengthscale)
    stationary = {"rbf": rbf, "matern32": matern32, "matern52": matern52}
    if kind not in stationary:
        raise ValueError(f"kind must be one of {list(KERNELS)}, found {kind!r}.")
    return stationary[kind](squared_distances(coordinates, second), lengthscale)


def _root(squared: Float[Array, "..."]) -> Float[Array, "..."]:
    # The derivative of the root is infinite at 0, where these kernels are smooth in the coordinates.
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
