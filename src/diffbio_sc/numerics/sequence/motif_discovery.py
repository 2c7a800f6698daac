r"""Motifs that sequences themselves hold: words grown into log-odds matrices by expectation maximisation.

Each sequence has one site of a motif or none (the ZOOPS model of Bailey, Elkan 1994, ISMB 2:28), on either strand. With
prior :math:`\lambda` and log-odds score :math:`s` of the best of N places, the site is there with probability

.. math:: \frac{\lambda e^s / N}{\lambda e^s / N + 1 - \lambda}

and the bases of the best place, weighted by it, make the next matrix. All words are grown at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

__all__ = ["distinct_words", "grow_motifs"]

_ONE_HOT = np.eye(5, 4, dtype=np.float32)
_BLOCK_BASES = 4_000_000
_FIRST_PRIOR = 0.2
_CERTAINTY = 0.85  # of the letters of a word, at first
_PSEUDOCOUNT = 2.0  # sites, spread over the letters like the background


def distinct_words(
    words: Int[np.ndarray, "words k"], weight: Float[np.ndarray, " words"], number: int
) -> Int[np.ndarray, "chosen k"]:
    """Return the words of most weight, leaving out those that are like one of more weight.

    Alike are words that differ in one base at most, or continue each other when moved by one, on either strand.
    """
    chosen: list[np.ndarray] = []
    for candidate in np.argsort(-weight, kind="stable"):
        word = words[candidate]
        taken = np.array(chosen).reshape(-1, words.shape[1])
        alike = False
        for strand in (word, 3 - word[::-1]):
            differ = (taken != strand).sum(1) <= 1
            moved = (taken[:, 1:] == strand[:-1]).all(1) | (taken[:, :-1] == strand[1:]).all(1)
            alike = alike or bool((differ | moved).any())
        if not alike:
            chosen.append(word)
        if len(chosen) == number:
            break
    return np.array(chosen, np.int8)


def grow_motifs(
    tokens: Int[np.ndarray, "rows length"], words: Sequence[Int[np.ndarray, " k"]], *, flank: int = 5, rounds: int = 3
) -> Float[np.ndarray, "words width 4"]:
    """Grow words into motifs.

    Parameters
    ----------
    tokens
        Sequences, int8, A C G T N = 0 1 2 3 4, at least as long as a word with both flanks.
    words
        Tokens of the words, all of one length.
    flank
        Bases on both sides of a word that the motif may come to care about.
    rounds
        Rounds of expectation maximisation.

    Returns
    -------
    Log-odds (natural logarithm) of each base against its share in the sequences, float32.
    """
    shares = np.bincount(tokens.ravel(), minlength=5)[:4] + 1.0
    background = shares / shares.sum()
    background = (background + background[::-1]) / 2  # the same on both strands
    k = len(words[0])
    matrices = np.tile(background, (len(words), k + 2 * flank, 1))
    for number, word in enumerate(words):
        matrices[number, flank : flank + k] *= 1 - _CERTAINTY
        matrices[number, np.arange(flank, flank + k), word] += _CERTAINTY
    prior = np.full(len(words), _FIRST_PRIOR)
    odds = np.log(matrices / background)
    for _ in range(rounds):
        counts, there = _sites(tokens, odds.astype(np.float32), prior)
        counts += _PSEUDOCOUNT * background
        odds = np.log(counts / counts.sum(2, keepdims=True) / background)
        prior = np.clip(there / len(tokens), 1e-4, 0.9)
    return odds.astype(np.float32)


def _sites(
    tokens: Int[np.ndarray, "rows length"], odds: Float[np.ndarray, "words width 4"], prior: Float[np.ndarray, " words"]
) -> tuple[Float[np.ndarray, "words width 4"], Float[np.ndarray, " words"]]:
    """Expected bases at the best places of all sequences, and expected number of sites."""
    words, width, _ = odds.shape
    rows, length = tokens.shape
    places = length - width + 1
    forward = odds.reshape(words, -1)
    both = np.concatenate([forward, forward[:, ::-1]]).T
    ratio = np.log(prior / (1 - prior) / (2 * places))
    counts, there = np.zeros((words, width, 4)), np.zeros(words)
    offsets = np.arange(width)
    size = max(1, _BLOCK_BASES // (places * width))
    for begin in range(0, rows, size):
        block = tokens[begin : begin + size]
        bases = _ONE_HOT[block].reshape(len(block), -1)
        windows = np.lib.stride_tricks.sliding_window_view(bases, 4 * width, axis=1)[:, ::4]
        scores = (windows.reshape(-1, 4 * width) @ both).reshape(len(block), 2 * places, words)
        best = scores.argmax(1)
        score = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        weight = 1 / (1 + np.exp(-np.clip(score + ratio, -50, 50)))
        there += weight.sum(0)
        backward = (best % 2 == 1)[..., None]
        place = (best // 2)[..., None] + np.where(backward, width - 1 - offsets, offsets)
        found = block[np.arange(len(block))[:, None, None], place]
        found = np.where(backward & (found < 4), 3 - found, found)
        for base in range(4):
            counts[..., base] += np.einsum("rm,rmw->mw", weight, found == base)
    return counts, there
