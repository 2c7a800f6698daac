"""Best match of motifs on both strands of sequences: on the host, and in JAX for gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["best_scores", "check_motifs", "soft_best_scores"]

# As windows of one-hot bases, 4 bytes for each base of each place: about 60 MB.
_BLOCK_BASES = 4_000_000
_ONE_HOT = np.eye(5, 4, dtype=np.float32)


def check_motifs(motifs: Mapping[str, Float[np.ndarray, "width 4"]], length: int) -> dict[str, np.ndarray]:
    """Return motifs as float32, or raise ValueError naming the first that cannot be scored.

    Parameters
    ----------
    motifs
        Log-odds of each base (A C G T) at each place, by name.
    length
        Length of the sequences.
    """
    checked = {}
    for name, motif in motifs.items():
        matrix = np.asarray(motif, np.float32)
        if matrix.ndim != 2 or matrix.shape[1] != 4 or not len(matrix):
            raise ValueError(f"motif {name!r} must be log-odds (width, 4), found shape {matrix.shape}.")
        if not np.isfinite(matrix).all():
            raise ValueError(
                f"motif {name!r} has entries that are not finite: add a pseudocount before taking logarithms."
            )
        if (matrix >= 0).all() and np.allclose(matrix.sum(1), 1, atol=1e-2):
            raise ValueError(f"motif {name!r} holds probabilities: give log-odds against the background.")
        if len(matrix) > length:
            raise ValueError(f"motif {name!r} has {len(matrix)} places, more than the {length} bases of a sequence.")
        checked[str(name)] = matrix
    return checked


def best_scores(
    tokens: Int[np.ndarray, "rows length"], motifs: Sequence[Float[np.ndarray, "width 4"]]
) -> Float[np.ndarray, "rows motifs"]:
    """Return the largest sum of log-odds of each motif over all places of both strands, float32.

    An unknown base adds 0.

    Parameters
    ----------
    tokens
        Sequences, int8, A C G T N = 0 1 2 3 4.
    motifs
        Log-odds matrices; none is longer than the sequences.
    """
    rows, length = tokens.shape
    result = np.empty((rows, len(motifs)), np.float32)
    widths = np.array([len(motif) for motif in motifs])
    for width in np.unique(widths):
        chosen = np.flatnonzero(widths == width)
        both = _both_strands([motifs[number] for number in chosen])
        places = length - width + 1
        size = max(1, _BLOCK_BASES // (places * width))
        for begin in range(0, rows, size):
            block = _ONE_HOT[tokens[begin : begin + size]].reshape(-1, 4 * length)
            windows = np.lib.stride_tricks.sliding_window_view(block, 4 * width, axis=1)[:, ::4]
            scores = (windows.reshape(-1, 4 * width) @ both).reshape(len(block), places, 2, len(chosen))
            result[begin : begin + size, chosen] = scores.max((1, 2))
    return result


def soft_best_scores(
    one_hot: Float[Array, "rows length 4"], motifs: Sequence[Float[np.ndarray, "width 4"]]
) -> Float[Array, "rows motifs"]:
    """Return what :func:`best_scores` does, in JAX: the gradient goes to the bases of the best place."""
    columns: dict[int, Array] = {}
    widths = [len(motif) for motif in motifs]
    for width in sorted(set(widths)):
        chosen = [number for number, found in enumerate(widths) if found == width]
        places = one_hot.shape[1] - width + 1
        windows = jnp.stack([one_hot[:, offset : offset + places] for offset in range(width)], axis=2)
        both = _both_strands([motifs[number] for number in chosen], jnp)
        scores = windows.reshape(-1, 4 * width) @ both
        best = scores.reshape(one_hot.shape[0], places, 2, len(chosen)).max((1, 2))
        columns |= {number: best[:, place] for place, number in enumerate(chosen)}
    if not columns:
        return jnp.zeros((one_hot.shape[0], 0), one_hot.dtype)
    return jnp.stack([columns[number] for number in range(len(motifs))], axis=1)


def _both_strands(motifs: Sequence[Any], library: Any = np) -> Any:
    """Columns (bases of all places, motifs): of the motifs, then of their reverse complements."""
    forward = [library.asarray(motif, np.float32).ravel() for motif in motifs]
    # Reversing all entries turns A C G T into T G C A and the places around: the reverse complement.
    return library.stack([*forward, *(column[::-1] for column in forward)], axis=1)
