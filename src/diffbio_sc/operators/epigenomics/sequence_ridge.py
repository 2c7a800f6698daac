r"""A linear model of k-mers and motifs, the start of the contextual sequence model, differentiable in the sequence.

The logit of cell type c is

.. math:: b_c + \sum_k w_{kc} \log(1 + n_k) + \sum_m v_{mc} s_m

with :math:`n_k` the count of the k-mer or its reverse complement and :math:`s_m` the best score of motif m on both
strands: the other strand of a sequence has the same logits. Weights come from a closed form
(:mod:`diffbio_sc.numerics.linear.ridge`) and can be trained from there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffbio_sc.numerics.sequence.kmers import Pattern, n_columns
from diffbio_sc.numerics.sequence.kmers_jax import log_counts
from diffbio_sc.numerics.sequence.motifs import soft_best_scores
from diffbio_sc.operators.contract import FittedStatistic

__all__ = ["SequenceRidge"]


class SequenceRidge(nnx.Module):
    """Linear logits of sequences.

    Parameters
    ----------
    weights
        Weight of each k-mer, then of each motif (columns, cells).
    intercept
        (cells,).
    patterns
        Patterns of the k-mers, in the order of their columns.
    motifs
        Log-odds matrices.

    Raises
    ------
    ValueError
        If there are not as many weights as columns.
    """

    def __init__(
        self,
        weights: Float[np.ndarray, "columns cells"],
        intercept: Float[np.ndarray, " cells"],
        *,
        patterns: Sequence[Pattern],
        motifs: Sequence[Float[np.ndarray, "width 4"]] = (),
    ):
        expected = n_columns(patterns) + len(motifs)
        if len(weights) != expected:
            raise ValueError(f"weights must have {expected} rows (k-mers, then motifs), found {len(weights)}.")
        self.patterns = tuple(tuple(pattern) for pattern in patterns)
        self.weights = nnx.Param(jnp.asarray(weights, jnp.float32))
        self.intercept = nnx.Param(jnp.asarray(intercept, jnp.float32))
        self.motifs = nnx.List([FittedStatistic(jnp.asarray(motif, jnp.float32)) for motif in motifs])

    def __call__(
        self, sequence: Float[Array, "rows length 4"], *, n_tokens: int | None = None, reach: int = 0
    ) -> Float[Array, "rows *tokens cells"]:
        """Return logits.

        Parameters
        ----------
        sequence
            Sequences, one-hot or relaxed, A C G T; a row of zeros is an unknown base.
        n_tokens
            Number of equal parts to divide the sequences into; the logits are then those of each part
            (rows, tokens, cells). Default: of the whole sequence (rows, cells).
        reach
            Number of bases beyond both ends of a part that count with it; there are none beyond the sequence.
        """
        if n_tokens is None:
            return self.features(sequence) @ self.weights[...] + self.intercept[...]
        rows, length, _ = sequence.shape
        if length % n_tokens:
            raise ValueError(f"n_tokens must divide the {length} bases of a sequence, found {n_tokens}.")
        width = length // n_tokens
        padded = jnp.pad(sequence, ((0, 0), (reach, reach), (0, 0)))
        places = np.arange(n_tokens)[:, None] * width + np.arange(width + 2 * reach)
        parts = padded[:, places].reshape(rows * n_tokens, -1, 4)
        logits = self.features(parts) @ self.weights[...] + self.intercept[...]
        return logits.reshape(rows, n_tokens, -1)

    def features(self, sequence: Float[Array, "rows length 4"]) -> Float[Array, "rows columns"]:
        """Return the columns that the weights belong to."""
        columns = log_counts(sequence, self.patterns)
        if not len(self.motifs):
            return columns
        scores = soft_best_scores(sequence, [motif[...] for motif in self.motifs])  # type: ignore[misc]
        return jnp.concatenate([columns, scores], axis=1)
