"""Counts of k-mers in JAX, of hard and of relaxed sequences; the twin of :mod:`diffbio_sc.numerics.sequence.kmers`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffbio_sc.numerics.sequence.kmers import Pattern, canonical_columns

__all__ = ["log_counts", "soft_counts"]


def soft_counts(one_hot: Float[Array, "rows length 4"], pattern: Pattern) -> Float[Array, "rows columns"]:
    """Count the k-mers of sequences, differentiable in them.

    The count of a k-mer is the sum over places of the product of its bases' entries: the expected count, where the rows
    of a relaxed sequence are probabilities that are independent of each other. A row of zeros (N) counts for none.

    Parameters
    ----------
    one_hot
        Sequences, one row a base in the order A C G T.
    pattern
        Pattern of the k-mers; sequences that are shorter have none.
    """
    k = len(pattern)
    table = canonical_columns(k)
    places = one_hot.shape[1] - pattern[-1]
    if places <= 0:
        return jnp.zeros((one_hot.shape[0], int(table.max()) + 1), one_hot.dtype)
    # All 4^k products at every place would be many; those of each half are few, and their sum over places is one
    # product of matrices.
    first, second = (_products(one_hot, half, places) for half in (pattern[: k // 2], pattern[k // 2 :]))
    counts = jnp.einsum("rpa,rpb->rab", first, second).reshape(one_hot.shape[0], 4**k)
    smaller, larger = _pairs(k)
    return counts[:, smaller] + jnp.where(jnp.asarray(smaller == larger), 0.0, counts[:, larger])


def log_counts(one_hot: Float[Array, "rows length 4"], patterns: Sequence[Pattern]) -> Float[Array, "rows columns"]:
    """Return ``log(1 + count)`` of the k-mers of some patterns, one after the other."""
    return jnp.concatenate([jnp.log1p(soft_counts(one_hot, pattern)) for pattern in patterns], axis=1)


def _products(one_hot: Array, offsets: Sequence[int], places: int) -> Float[Array, "rows places codes"]:
    product = jnp.ones((one_hot.shape[0], places, 1), one_hot.dtype)
    for offset in offsets:
        base = one_hot[:, offset : offset + places]
        product = (product[..., None] * base[:, :, None]).reshape(one_hot.shape[0], places, -1)
    return product


def _pairs(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the k-mer of each column and of its reverse complement."""
    table = canonical_columns(k)
    smaller = np.unique(table, return_index=True)[1]
    larger = len(table) - 1 - np.unique(table[::-1], return_index=True)[1]
    return smaller, larger
