"""What each base of a sequence adds to a prediction: by substituting it, or by gradients.

Scores are hypothetical contributions (sequences, cell types, length, 4): of each letter at each position, whether it
stands there or not. Those of the letters that stand there are the contributions. Both are what TF-MoDISco takes. How
much a base matters, whatever stands there, is its importance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from jaxtyping import Array, Float, Int

from diffbio_sc._compiled import one_thread_at_a_time
from diffbio_sc.genome.sequences import N, one_hot

__all__ = [
    "contributions",
    "gradients",
    "importance",
    "integrated_gradients",
    "mutagenesis",
    "shuffle_dinucleotides",
]

_SUBSTITUTED = 8192  # sequences that are predicted together
_DIFFERENTIATED = 32

Predict = Callable[[Int[np.ndarray, "n length"], Int[np.ndarray, " n"]], Float[np.ndarray, "n cells"]]
Logits = Callable[..., Float[Array, "n cells"]]


def mutagenesis(predict: Predict, tokens: Int[np.ndarray, "n length"]) -> Float[np.ndarray, "n cells length 4"]:
    """Substitute every base by every letter: log-odds with a letter, less the mean over the four letters.

    Parameters
    ----------
    predict
        Log-odds of tokens, given which of the sequences each was made from.
    tokens
        Sequences.
    """
    number, length = tokens.shape
    standing = predict(tokens, np.arange(number))
    result = np.empty((number, length, 4, standing.shape[1]), np.float32)
    result[:] = standing[:, None, None]
    # Only letters that do not stand there; of an unknown base all four.
    row, place, letter = np.nonzero(tokens[:, :, None] != np.arange(4))
    for first in range(0, len(row), _SUBSTITUTED):
        chosen = slice(first, first + _SUBSTITUTED)
        changed = tokens[row[chosen]]
        changed[np.arange(len(changed)), place[chosen]] = letter[chosen]
        result[row[chosen], place[chosen], letter[chosen]] = predict(changed, row[chosen])
    return _centred(result.transpose(0, 3, 1, 2))


@one_thread_at_a_time
def gradients(
    logits: Logits, tokens: Int[np.ndarray, "n length"], *extra: Float[np.ndarray, "n ..."]
) -> Float[np.ndarray, "n cells length 4"]:
    """Gradient by each letter, less its mean over the four: to first order what its substitution changes.

    Parameters
    ----------
    logits
        Log-odds of relaxed sequences, in JAX.
    tokens
        Sequences.
    extra
        Further arguments of ``logits``, a row for each sequence.
    """
    return _centred(_in_batches(_jacobian(logits), [one_hot(tokens), *extra]))


@one_thread_at_a_time
def integrated_gradients(
    logits: Logits,
    tokens: Int[np.ndarray, "n length"],
    references: Int[np.ndarray, "n references length"],
    *extra: Float[np.ndarray, "n ..."],
    steps: int = 20,
) -> Float[np.ndarray, "n cells length 4"]:
    """Gradients along straight lines from reference sequences, the mean over these.

    The contributions of a sequence sum to its log-odds less the mean of its references', but for the error of the sum
    over steps.

    Parameters
    ----------
    logits
        Log-odds of relaxed sequences, in JAX.
    tokens, references
        Sequences, and some to compare each of them with.
    extra
        Further arguments of ``logits``, a row for each sequence.
    steps
        Points of each line.
    """
    import jax
    import jax.numpy as jnp

    jacobian = _jacobian(logits)
    # Midpoints of equal parts of the line.
    points = jnp.asarray((np.arange(steps) + 0.5) / steps, jnp.float32)

    def along(sequence, reference, *further):
        def add(total, point):
            return total + jacobian(reference + point * (sequence - reference), *further), None

        zero = jnp.zeros_like(jax.eval_shape(jacobian, sequence, *further), jnp.float32)
        mean = jax.lax.scan(add, zero, points)[0] / steps
        # A letter's contribution: it comes in, and the reference's letters go.
        return mean - (mean * reference[:, None]).sum(-1, keepdims=True)

    number = references.shape[1]
    total = sum(_in_batches(along, [one_hot(tokens), one_hot(references[:, index]), *extra]) for index in range(number))
    return (total / number).astype(np.float32)


def contributions(
    hypothetical: Float[np.ndarray, "n cells length 4"], tokens: Int[np.ndarray, "n length"]
) -> Float[np.ndarray, "n cells length"]:
    """Score of the letters that stand there; 0 of an unknown base."""
    return (hypothetical * one_hot(tokens)[:, None]).sum(axis=3)


def importance(hypothetical: Float[np.ndarray, "n cells length 4"]) -> Float[np.ndarray, "n cells length"]:
    """Standard deviation of the scores of the four letters: how much it matters which of them stands there.

    A site may hold a letter that its motif does not like, whose contribution is negative; the base is part of the site
    all the same, and important.
    """
    return hypothetical.std(axis=3)


def shuffle_dinucleotides(
    tokens: Int[np.ndarray, "n length"], number: int, rng: np.random.Generator
) -> Int[np.ndarray, "n references length"]:
    """Shuffle each sequence so that every pair of neighbouring letters occurs as often as before.

    A random Eulerian path through the graph of its pairs: the last edge out of each letter is drawn as a random tree
    towards the last letter, the others in random order (Altschul and Erickson, 1985).
    """
    rows = np.repeat(np.asarray(tokens, np.int8), number, axis=0)
    return _shuffled(rows, rng).reshape(len(tokens), number, tokens.shape[1])


def _centred(scores: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(scores - scores.mean(axis=3, keepdims=True), dtype=np.float32)


def _jacobian(logits: Logits) -> Callable[[Any], Any]:
    """Gradients of all outputs (n, cells, length, 4): sequences of a batch do not touch each other's outputs."""
    import jax
    import jax.numpy as jnp

    def jacobian(sequences, *further):
        value, pull = jax.vjp(lambda relaxed: logits(relaxed, *further), sequences)
        ones = jnp.broadcast_to(jnp.eye(value.shape[1])[:, None], (value.shape[1], *value.shape))
        return jnp.moveaxis(jax.vmap(lambda one: pull(one)[0])(ones), 0, 1)

    return jacobian


def _in_batches(function: Callable[..., Any], arrays: list[np.ndarray]) -> np.ndarray:
    """Run a compiled function over blocks of one size, the last one filled up."""
    import jax

    compiled = jax.jit(function)
    number = len(arrays[0])
    size = min(_DIFFERENTIATED, number)
    parts = []
    for first in range(0, number, size):
        rows = np.arange(first, first + size) % number
        parts.append(np.asarray(compiled(*(array[rows] for array in arrays)))[: number - first])
    return np.concatenate(parts)


@numba.njit(cache=True)
def _shuffled(rows, rng):  # pragma: no cover
    length = rows.shape[1]
    result = rows.copy()
    for row in range(len(rows)):
        text = rows[row]
        count = np.zeros(N + 1, np.int64)
        following = np.empty((N + 1, length), np.int8)
        for place in range(length - 1):
            letter = text[place]
            following[letter, count[letter]] = text[place + 1]
            count[letter] += 1
        end = text[length - 1]
        # Last edges by random walks that end at what is reached already: a uniform random tree (Wilson, 1996).
        reached = np.zeros(N + 1, np.bool_)
        reached[end] = True
        last = np.full(N + 1, -1, np.int64)
        for start in range(N + 1):
            if count[start] == 0:
                continue
            letter = start
            while not reached[letter]:
                last[letter] = int(rng.random() * count[letter])
                letter = following[letter, last[letter]]
            letter = start
            while not reached[letter]:
                reached[letter] = True
                letter = following[letter, last[letter]]
        for letter in range(N + 1):
            free = count[letter]
            if letter != end and free > 0:
                free -= 1
                kept = following[letter, last[letter]]
                following[letter, last[letter]] = following[letter, free]
                following[letter, free] = kept
            for place in range(free - 1, 0, -1):
                other = int(rng.random() * (place + 1))
                kept = following[letter, place]
                following[letter, place] = following[letter, other]
                following[letter, other] = kept
        used = np.zeros(N + 1, np.int64)
        letter = text[0]
        for place in range(1, length):
            new = following[letter, used[letter]]
            used[letter] += 1
            result[row, place] = new
            letter = new
    return result
