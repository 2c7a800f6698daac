"""Contact maps as bands: entry (k, i) is the contact of bins i and i + k, 0 where i + k lies beyond the last bin."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jax import numpy as jnp
from jaxtyping import Array, Float, Int


def band_of_pixels(counts: sp.csr_array, depth: int) -> np.ndarray:
    """First ``depth`` diagonals of an upper triangle, as float32 (depth, bins)."""
    matrix = counts.tocoo()
    near = matrix.col - matrix.row < depth
    band = np.zeros((depth, counts.shape[0]), np.float32)
    band[(matrix.col - matrix.row)[near], matrix.row[near]] = matrix.data[near]
    return band


def band_of_pixel_list(
    bins: Int[Array, "pixels 2"], counts: Float[Array, " pixels"], depth: int, n: int
) -> Float[Array, "depth n"]:
    """First ``depth`` diagonals of a map of ``n`` bins from a list of its pixels, each pair once, in either order.

    Pixels farther apart are left out; equal ones are added up. Gradients run to the counts.
    """
    first, second = bins.min(1), bins.max(1)
    return jnp.zeros((depth, n), counts.dtype).at[second - first, first].add(counts, mode="drop")


def inside(depth: int, n: int) -> np.ndarray:
    """Which entries of a band lie on the map."""
    return np.add.outer(np.arange(depth), np.arange(n)) < n


def ahead(values: Float[Array, " n"], depth: int) -> Float[Array, "depth n"]:
    """Values of the second bin of each pair, ``values[i + k]``; 0 beyond the end."""
    n = values.shape[0]
    padded = jnp.concatenate([values, jnp.zeros(depth, values.dtype)])
    return padded[np.add.outer(np.arange(depth), np.arange(n))]


def band_of_matrix(matrix: Float[Array, "n n"], depth: int) -> Float[Array, "depth n"]:
    """First diagonals of a matrix, of which the mean with its transpose is taken."""
    n = matrix.shape[0]
    rows = np.broadcast_to(np.arange(n), (depth, n))
    columns = np.minimum(rows + np.arange(depth)[:, None], n - 1)
    symmetric = 0.5 * (matrix + matrix.T)
    return jnp.where(inside(depth, n), symmetric[rows, columns], 0.0)


def matrix_of_band(band: Float[Array, "depth n"]) -> Float[Array, "n n"]:
    """Symmetric matrix with the given diagonals, 0 beyond them."""
    depth, n = band.shape
    first = np.minimum.outer(np.arange(n), np.arange(n))
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return jnp.where(distance < depth, band[np.minimum(distance, depth - 1), first], 0.0)


def band_product(band: Float[Array, "depth n"], vector: Float[Array, " n"]) -> Float[Array, " n"]:
    """Product of the symmetric matrix with a vector."""
    depth, n = band.shape
    forward = (band * ahead(vector, depth)).sum(0)
    # Entry (k, j - k) of band * vector belongs to bin j.
    scaled = jnp.pad(band * vector, ((0, 0), (depth, 0)))
    index = np.subtract.outer(-np.arange(depth), -np.arange(n)) + depth
    backward = scaled[np.arange(1, depth)[:, None], index[1:]].sum(0) if depth > 1 else 0.0
    return forward + backward
