"""Trees of parameters as one vector, on which a training step works: code is compiled for one array, not for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import PyTreeDef
from jaxtyping import Array

_FEW_PIECES = 8  # up to which XLA makes a concatenation a part of other loops; of more it copies piece by piece
#: One vector for each type of number.
Vectors = dict[str, Array]


class Layout(NamedTuple):
    """What lies where in the vectors; static, the same for all trees of one structure.

    Attributes
    ----------
    structure
        Of the tree.
    shapes, dtypes
        Of its leaves.
    """

    structure: PyTreeDef
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @classmethod
    def of(cls, tree: Any) -> Layout:
        """Layout of the leaves of ``tree``."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(leaf.shape for leaf in leaves), tuple(str(leaf.dtype) for leaf in leaves))

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each leaf."""
        return [int(np.prod(shape)) for shape in self.shapes]

    def join(self, tree: Any, *, library: Any) -> Vectors:
        """Vectors of a tree, by ``library``, numpy or jax.numpy."""
        parts: dict[str, list[Any]] = {dtype: [] for dtype in self.dtypes}
        for leaf, dtype in zip(jax.tree.leaves(tree), self.dtypes, strict=True):
            parts[dtype].append(library.reshape(library.asarray(leaf), -1))
        write = np.concatenate if library is np else _written
        return {dtype: write(pieces) for dtype, pieces in parts.items()}

    def split(self, vectors: Vectors) -> Any:
        """Tree of the vectors; views of them, if they are numpy's."""
        taken = dict.fromkeys(self.dtypes, 0)
        leaves = []
        for shape, dtype, size in zip(self.shapes, self.dtypes, self.sizes, strict=True):
            start = taken[dtype]
            leaves.append(vectors[dtype][start : start + size].reshape(shape))
            taken[dtype] = start + size
        return jax.tree.unflatten(self.structure, leaves)


def _written(pieces: Sequence[Array]) -> Array:
    """One piece behind the other; on CPUs a few are each written into a vector of zeros.

    A concatenation of a few pieces becomes a part of other loops there, which read all pieces at every position and
    mask what lies beyond their ends. Where no page of memory lies beyond, the processor takes hundreds of cycles for
    each such reading: the same epoch took ten times as long, or not, as the memory happened to lie.
    """
    if jax.default_backend() != "cpu" or len(pieces) > _FEW_PIECES:
        return jax.numpy.concatenate(pieces)
    vector, end = jax.numpy.zeros(sum(len(piece) for piece in pieces), pieces[0].dtype), 0
    for piece in pieces:
        vector = jax.lax.dynamic_update_slice(vector, piece, (end,))
        end += len(piece)
    return vector


def piecewise(sizes: Sequence[int], pieces: Sequence[int], values: Array) -> Array:
    """A vector whose runs of ``sizes`` hold ``values[pieces]``; written so that it is never stored.

    Parameters
    ----------
    sizes
        Length of each run.
    pieces
        Which value each run has.
    values
        The values.
    """
    if len(set(pieces)) == 1:
        return values[pieces[0]]
    position = jax.lax.iota(np.int32, sum(sizes))
    result, end = values[pieces[-1]], sum(sizes)
    for number in reversed(range(len(sizes) - 1)):
        end -= sizes[number + 1]
        if pieces[number] != pieces[number + 1]:
            result = jax.numpy.where(position < end, values[pieces[number]], result)
    return result
