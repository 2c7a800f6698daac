"""From bases to tokens: filters on both strands, and the best match of each within a token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from diffbio_sc._compiled import full_products


def reverse_complement(sequence: Float[Array, "*batch length 4"]) -> Float[Array, "*batch length 4"]:
    """Reverse complement of one-hot bases in the order A, C, G, T."""
    return sequence[..., ::-1, ::-1]


def token_mask(mask: Bool[Array, "batch length"], width: int) -> Bool[Array, "batch tokens"]:
    """Which tokens have a base."""
    return mask.reshape(len(mask), -1, width).any(-1)


class SequenceStem(nnx.Module):
    """Embeds a sequence in tokens.

    Each filter is matched to both strands. A token keeps the better match of the two, and their difference, which says
    how the motif is oriented.

    Parameters
    ----------
    filters
        Number of filters.
    width
        Their width in bases.
    token_width
        Bases of a token.
    features
        Width of the embedding.
    rngs
        Random streams of the initial parameters.
    """

    def __init__(self, filters: int, width: int, token_width: int, features: int, *, rngs: nnx.Rngs):
        self.token_width = token_width
        # One base of four is 1, so that scores of a random sequence have variance 1.
        scale = math.sqrt(1.0 / width)
        self.kernel = nnx.Param(scale * rngs.params.normal((width, 4, filters)))
        # About the expected best of 2 token_width scores: the start keeps the matches above it.
        self.threshold = nnx.Param(jnp.full(filters, math.sqrt(2.0 * math.log(2.0 * token_width))))
        self.project = nnx.Linear(2 * filters, features, rngs=rngs)

    def set_filters(self, motifs: Sequence[Float[np.ndarray, "motif_width 4"]]) -> None:
        """Let the first filters be weight matrices of motifs, centred and scaled to variance 1 on random bases.

        Parameters
        ----------
        motifs
            Log-odds of letters A, C, G, T, as many motifs at most as there are filters. What is wider than a filter is
            cut to its middle.
        """
        kernel = np.array(self.kernel[...])
        if len(motifs) > kernel.shape[2]:
            raise ValueError(f"{len(motifs)} motifs are more than the {kernel.shape[2]} of config.stem_filters.")
        for number, motif in enumerate(motifs):
            weights = np.asarray(motif, np.float64)
            if weights.ndim != 2 or weights.shape[1] != 4 or not np.isfinite(weights).all():
                raise ValueError(f"motif {number} must hold finite weights (width, 4), found shape {weights.shape}.")
            cut = max(0, len(weights) - len(kernel)) // 2
            weights = weights[cut : cut + len(kernel)]
            weights = weights - weights.mean(1, keepdims=True)
            first = (len(kernel) - len(weights)) // 2
            kernel[:, :, number] = 0.0
            kernel[first : first + len(weights), :, number] = weights / max(math.sqrt((weights**2).sum() / 4.0), 1e-6)
        self.kernel[...] = jnp.asarray(kernel)

    def __call__(
        self, sequence: Float[Array, "batch length 4"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch tokens features"]:
        """Return tokens; those without a base are 0."""
        return self.embed(self.best_matches(sequence, mask))

    def best_matches(
        self, sequence: Float[Array, "batch length 4"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch tokens both_strands"]:
        """Best score of each filter in each token, first of the forward strand, then of the other; -inf without base.

        Bases that are masked must be 0.
        """
        return best_matches(sequence, self.both_strands(), mask, self.token_width)

    def both_strands(self) -> Float[Array, "width 4 both_strands"]:
        """Filters, first as they are, then as they look on the other strand."""
        kernel = self.kernel[...]
        return jnp.concatenate([kernel, kernel[::-1, ::-1]], -1)

    def base_scores(
        self, sequence: Float[Array, "batch length 4"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length both_strands"]:
        """Score of each filter at each base; -inf where masked."""
        return jnp.where(mask[..., None], _convolve(sequence, self.both_strands()), -jnp.inf)

    def embed(self, matches: Float[Array, "batch tokens both_strands"]) -> Float[Array, "batch tokens features"]:
        """Embedding of best matches; 0 for tokens without base."""
        present = jnp.isfinite(matches)
        forward, backward = jnp.split(jnp.where(present, matches, 0.0), 2, axis=-1)
        better = jax.nn.gelu(jnp.maximum(forward, backward) - self.threshold[...])
        tokens = self.project(jnp.concatenate([better, forward - backward], -1))
        return jnp.where(present[..., :1], tokens, 0.0)


def best_matches(
    sequence: Float[Array, "batch length 4"],
    kernel: Float[Array, "width 4 filters"],
    mask: Bool[Array, "batch length"],
    token_width: int,
) -> Float[Array, "batch tokens filters"]:
    """Best score of each filter within each token; -inf in tokens without base.

    The gradient is that of the best position alone, written out below: of a convolution inside a loop, XLA computes the
    gradient in the filters 60 times slower on a CPU (``benchmarks/contextual_windows.py stem``).
    """
    return _best(sequence, kernel, mask, token_width)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _best(sequence, kernel, mask, token_width):
    return _scores_by_token(sequence, kernel, mask, token_width).max(2)


def _best_forward(sequence, kernel, mask, token_width):
    scores = _scores_by_token(sequence, kernel, mask, token_width)
    return scores.max(2), (sequence, kernel, mask, scores.argmax(2))


@full_products()
def _best_backward(token_width, residuals, slope):
    sequence, kernel, mask, at = residuals
    width, filters = len(kernel), kernel.shape[2]
    batch, tokens = at.shape[:2]
    half = width // 2
    around = jnp.pad(sequence, ((0, 0), (half, half), (0, 0)))
    first = at + (np.arange(tokens) * token_width)[None, :, None]
    rows = np.arange(batch)[:, None, None]
    of_kernel = jnp.stack(
        [(slope[..., None] * around[rows, first + step]).sum((0, 1)).T for step in range(width)]
    )  # fmt: skip
    # Scores of the sequence as a whole have a slope at the best positions only; dropped where nobody asks for it.
    at_best = (at[:, :, None] == np.arange(token_width)[:, None]) * slope[:, :, None]
    dense = at_best.reshape(batch, tokens * token_width, filters).astype(sequence.dtype)
    of_sequence = _convolve(dense, kernel[::-1].swapaxes(1, 2))
    return of_sequence, of_kernel, np.zeros(mask.shape, jax.dtypes.float0)


_best.defvjp(_best_forward, _best_backward)


def _scores_by_token(sequence, kernel, mask, token_width):
    scores = jnp.where(mask[..., None], _convolve(sequence, kernel), -jnp.inf)
    return scores.reshape(len(scores), -1, token_width, scores.shape[-1])


def _convolve(sequence, kernel):
    return jax.lax.conv_general_dilated(sequence, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
