"""Motifs that are planted at marked places are found, as they are, and nothing else is."""

from __future__ import annotations

import numpy as np

from diffbio_sc.numerics.sequence.enriched import enriched_motifs

LETTERS = "ACGT"
MOTIFS = ("CCACTAGGGGGCA", "AGATAAGGCA")


def planted(windows=150, positions=16, width=20, rate=0.12, seed=0):
    draws = np.random.default_rng(seed)
    tokens = draws.choice(4, (windows, positions * width), p=[0.3, 0.2, 0.2, 0.3]).astype(np.int8)
    marked = np.zeros((windows, positions, 2), bool)
    for window, position, group in np.argwhere(draws.random(marked.shape) < rate):
        motif = np.array([LETTERS.index(letter) for letter in MOTIFS[group]])
        motif = np.where(draws.random(len(motif)) < 0.08, draws.integers(0, 4, len(motif)), motif)
        if draws.random() < 0.5:
            motif = 3 - motif[::-1]
        start = position * width + draws.integers(0, width - len(motif))
        tokens[window, start : start + len(motif)] = motif
        marked[window, position, group] = True
    return tokens, marked


def best_alignment(log_odds, motif):
    """Share of the motif's letters that the matrix names, at the best offset on either strand."""
    shares = []
    for weights in (log_odds, log_odds[::-1, ::-1]):
        letters = "".join(LETTERS[row.argmax()] for row in weights)
        for offset in range(-len(motif) + 4, len(letters) - 3):
            pairs = [(letters[offset + i], motif[i]) for i in range(len(motif)) if 0 <= offset + i < len(letters)]
            shares.append(sum(a == b for a, b in pairs) / len(motif))
    return max(shares)


def test_planted_motifs_are_found_in_their_groups():
    tokens, marked = planted()
    found = enriched_motifs(tokens, marked, position_width=20, width=15, most=6)
    for group, motif in enumerate(MOTIFS):
        first = next(one for one in found if one.group == group)
        assert best_alignment(first.log_odds, motif) >= 0.9
        # Positions that carry both motifs may have lost one.
        assert first.sites > 0.6 * marked[..., group].sum()
    assert [one.z for one in found] == sorted((one.z for one in found), reverse=True)


def test_log_odds_are_those_of_the_matches():
    """Every place is free of errors: the weights are counts of one letter and a pseudocount, against the background."""
    motif = np.array([LETTERS.index(letter) for letter in MOTIFS[0]])
    draws = np.random.default_rng(3)
    tokens = draws.integers(0, 4, (80, 60)).astype(np.int8)
    tokens[:, 23 : 23 + len(motif)] = motif
    marked = np.zeros((80, 3, 1), bool)
    marked[:, 1] = True
    (found, *_) = enriched_motifs(tokens, marked, position_width=20, width=13, most=1)
    counts = np.bincount(tokens.ravel(), minlength=4) + 1.0
    background = (counts + counts[::-1]) / (2 * counts.sum())
    shown = found.log_odds if best_alignment(found.log_odds, MOTIFS[0]) == 1 else found.log_odds
    largest = np.log((80 + 4 * background) / 84 / background)
    core = [row.max() for row in shown if row.max() > 1.0]
    assert len(core) >= 8
    assert min(abs(np.array(core)[:, None] - largest).min(1)) < 0.05


def test_no_motif_is_made_of_chance():
    tokens, _ = planted(rate=0.0)
    marked = np.random.default_rng(1).random((150, 16, 3)) < 0.1
    assert enriched_motifs(tokens, marked, position_width=20, width=15) == []
    assert enriched_motifs(tokens, np.zeros((150, 16, 1), bool), position_width=20) == []
    assert enriched_motifs(tokens, np.ones((150, 16, 1), bool), position_width=20) == []
    assert enriched_motifs(tokens[:, :6], marked[:, :1], position_width=6) == []


def test_unknown_bases_match_nothing():
    tokens, marked = planted(windows=60)
    tokens[:] = 4
    assert enriched_motifs(tokens, marked, position_width=20, width=15) == []
