from __future__ import annotations

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from diffbio_sc.engines.sequence_attributions import (
    contributions,
    gradients,
    importance,
    integrated_gradients,
    mutagenesis,
    shuffle_dinucleotides,
)
from diffbio_sc.genome.sequences import encode, one_hot


@pytest.fixture(scope="module")
def model():
    """Two outputs that are not linear in the sequence: products of neighbouring bases' weights, and a sine."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(12, 4, 2)).astype(np.float32)

    def logits(sequences, scale=None):
        each = jnp.einsum("nla,lac->nlc", sequences, weights)
        found = (each[:, :-1] * each[:, 1:]).sum(1) + jnp.sin(each.sum(1))
        return found if scale is None else found * scale

    return logits


TOKENS = encode(["ACGATACCTAGT", "AANCCTTTGNGA", "GGGGGGGGGGGG"])


def hard(model):
    return lambda tokens, rows: np.asarray(model(one_hot(tokens)))


def test_mutagenesis_is_each_substitution(model):
    found = mutagenesis(hard(model), TOKENS)
    assert found.shape == (3, 2, 12, 4)
    for row, place in ((0, 0), (1, 2), (1, 11), (2, 5)):
        values = []
        for letter in range(4):
            changed = TOKENS[row : row + 1].copy()
            changed[0, place] = letter
            values.append(np.asarray(model(one_hot(changed)))[0])
        expected = np.array(values) - np.mean(values, axis=0)
        np.testing.assert_allclose(found[row, :, place], expected.T, atol=1e-5)


def test_mutagenesis_knows_where_a_sequence_came_from(model):
    scale = np.array([1.0, 2.0, -1.0])
    found = mutagenesis(lambda tokens, rows: np.asarray(model(one_hot(tokens))) * scale[rows, None], TOKENS)
    np.testing.assert_allclose(found, mutagenesis(hard(model), TOKENS) * scale[:, None, None, None], atol=1e-5)


def test_gradients_are_finite_differences(model):
    found = gradients(model, TOKENS)
    sequences, step = one_hot(TOKENS).astype(np.float64), 1e-2
    for row, place in ((0, 3), (1, 2), (2, 11)):
        slope = np.empty((4, 2))
        for letter in range(4):
            up, down = sequences[row : row + 1].copy(), sequences[row : row + 1].copy()
            up[0, place, letter] += step
            down[0, place, letter] -= step
            slope[letter] = (np.asarray(model(jnp.asarray(up))) - np.asarray(model(jnp.asarray(down))))[0] / (2 * step)
        np.testing.assert_allclose(found[row, :, place], (slope - slope.mean(0)).T, atol=5e-3)
    scaled = gradients(model, TOKENS, np.full((3, 1), 2.0, np.float32))
    np.testing.assert_allclose(scaled, 2 * found, rtol=1e-5)


def test_batches_do_not_matter(model):
    many = np.repeat(TOKENS, 15, axis=0)  # more than one block, the last one filled up
    found = gradients(model, many)
    np.testing.assert_allclose(found[::15], gradients(model, TOKENS), atol=1e-5)
    assert len(found) == 45


def test_integrated_gradients_are_complete(model):
    references = shuffle_dinucleotides(TOKENS, 4, np.random.default_rng(0))
    found = integrated_gradients(model, TOKENS, references, steps=100)
    total = contributions(found, TOKENS).sum(2)
    predicted = np.asarray(model(one_hot(TOKENS)))
    compared = np.mean([np.asarray(model(one_hot(references[:, number]))) for number in range(4)], axis=0)
    # Unknown bases have no letter that could be credited.
    known = [0, 2]
    np.testing.assert_allclose(total[known], (predicted - compared)[known], atol=5e-3)
    coarse = integrated_gradients(model, TOKENS, references, steps=2)
    assert np.abs(contributions(coarse, TOKENS).sum(2) - (predicted - compared))[0].max() > 0.02


def test_integrated_gradients_of_a_linear_model_are_weights_times_differences():
    weights = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    references = shuffle_dinucleotides(TOKENS, 3, np.random.default_rng(0))
    found = integrated_gradients(lambda x: jnp.einsum("nla,la->n", x, weights)[:, None], TOKENS, references, steps=3)
    mean = one_hot(references).mean(1)
    np.testing.assert_allclose(found[:, 0], weights - (weights * mean).sum(2, keepdims=True), atol=1e-5)


def test_shuffles_keep_pairs_and_are_uniform():
    def pairs(tokens):
        return Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))

    rng = np.random.default_rng(3)
    found = shuffle_dinucleotides(TOKENS, 20, rng)
    for row in range(3):
        assert all(pairs(found[row, number]) == pairs(TOKENS[row]) for number in range(20))
    assert (found[2] == 2).all()
    # AACATAGA has 24 orders with the same pairs: three loops A.A and one pair AA, in any order.
    counts = Counter(map(bytes, shuffle_dinucleotides(encode(["AACATAGA"]), 6000, rng)[0].astype(np.uint8)))
    assert len(counts) == 24
    assert chisquare(list(counts.values())).pvalue > 1e-4
    same = shuffle_dinucleotides(TOKENS, 5, np.random.default_rng(7))
    np.testing.assert_array_equal(same, shuffle_dinucleotides(TOKENS, 5, np.random.default_rng(7)))


def test_contributions_are_of_the_letters_that_stand_there():
    scores = np.arange(3 * 2 * 12 * 4, dtype=np.float32).reshape(3, 2, 12, 4)
    found = contributions(scores, TOKENS)
    assert found[0, 1, 3] == scores[0, 1, 3, 0]
    assert found[2, 1, 4] == scores[2, 1, 4, 2]
    assert found[1, 0, 2] == 0


def test_a_letter_that_a_motif_dislikes_is_of_an_important_base():
    # Two cell types, three bases: one of a motif with a letter that is disliked, one with the best, one of no motif.
    scores = np.zeros((1, 2, 3, 4), np.float32)
    scores[0, 1, 0] = [-1.5, 2.5, -0.5, -0.5]
    scores[0, 1, 1] = [3.0, -1.0, -1.0, -1.0]
    tokens = np.zeros((1, 3), np.int8)
    np.testing.assert_array_equal(contributions(scores, tokens)[0, 1], [-1.5, 3.0, 0.0])
    np.testing.assert_allclose(importance(scores)[0, 1], [np.sqrt(9 / 4), np.sqrt(12 / 4), 0.0])
    assert not importance(scores)[0, 0].any()
