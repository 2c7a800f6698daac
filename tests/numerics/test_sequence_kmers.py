"""k-mers and motifs of sequences against counts by hand, and JAX against the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program

from diffbio_sc.genome.sequences import check_tokens, decode, encode, one_hot, one_strand, reverse_complement
from diffbio_sc.numerics.ranking import auroc
from diffbio_sc.numerics.sequence import kmers
from diffbio_sc.numerics.sequence.kmers_jax import log_counts, soft_counts
from diffbio_sc.numerics.sequence.motif_discovery import distinct_words, grow_motifs
from diffbio_sc.numerics.sequence.motifs import best_scores, check_motifs, soft_best_scores

COMPLEMENT = str.maketrans("ACGT", "TGCA")


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (20, 37)).astype(np.int8)
    tokens[0, 5:9] = 4
    tokens[1] = 4
    tokens[2] = 0
    return tokens


def counted(sequence, pattern):
    """Counts of the canonical k-mers of a sequence, by letters."""
    counts = {}
    for place in range(len(sequence) - pattern[-1]):
        forward = "".join(sequence[place + offset] for offset in pattern)
        if "N" not in forward:
            name = min(forward, forward[::-1].translate(COMPLEMENT))
            counts[name] = counts.get(name, 0) + 1
    return counts


@pytest.mark.parametrize("pattern", [(0,), (0, 1, 2), (0, 1, 2, 3), kmers.mirrored(2, 3), (0, 2, 4)])
def test_counts_are_those_of_the_letters(tokens, pattern):
    table = kmers.dense(kmers.kmer_rows(tokens, [pattern]))
    names = [name.replace(".", "") for name in kmers.kmer_names(pattern)]
    assert len(set(names)) == table.shape[1] == kmers.n_columns([pattern])
    for sequence, row in zip(decode(tokens), table, strict=True):
        counts = counted(sequence, pattern)
        np.testing.assert_allclose(row, np.log1p([counts.get(name, 0) for name in names]), rtol=1e-6)


def test_both_strands_have_the_same_counts_exactly(tokens):
    patterns = [kmers.contiguous(6), kmers.mirrored(3, 4), (0, 1, 4, 7, 8)]
    one, other = (kmers.dense(kmers.kmer_rows(t, patterns)) for t in (tokens, reverse_complement(tokens)))
    np.testing.assert_array_equal(one, other)


def test_patterns_that_would_differ_between_strands_are_refused(tokens):
    with pytest.raises(ValueError, match=r"read the same from both ends, found \(0, 1, 3\)"):
        kmers.kmer_rows(tokens, [(0, 1, 3)])
    with pytest.raises(ValueError, match="must rise from 0"):
        kmers.kmer_rows(tokens, [(1, 2)])
    with pytest.raises(ValueError, match="37 bases are shorter than the k-mers, which reach over 46"):
        kmers.kmer_rows(tokens, [kmers.mirrored(3, 40)])
    with pytest.raises(ValueError, match="k must be from 1 to 10, found 11"):
        kmers.canonical_columns(11)


def test_products_are_those_of_the_dense_table(tokens):
    patterns = [kmers.contiguous(3), kmers.mirrored(2, 1)]
    rows = kmers.kmer_rows(tokens, patterns)
    table = kmers.dense(rows).astype(np.float64)
    rng = np.random.default_rng(1)
    weights, targets, shares = rng.normal(size=(table.shape[1], 3)), rng.normal(size=(20, 3)), rng.random(20)
    np.testing.assert_allclose(kmers.products(rows, weights), table @ weights, atol=1e-6)
    np.testing.assert_allclose(kmers.transposed_products(rows, targets), table.T @ targets, atol=1e-6)
    total = np.zeros((table.shape[1],) * 2)
    kmers.gram(rows, shares, total)
    np.testing.assert_allclose(np.triu(total), np.triu(table.T @ (shares[:, None] * table)), atol=1e-5)
    assert not np.tril(total, -1).any()
    chosen = np.array([30, 2, 7])
    counts = kmers.chosen_counts(rows, chosen, np.uint8)
    np.testing.assert_allclose(np.log1p(counts.astype(float)), table[:, chosen], rtol=1e-6)
    assert counts.dtype == np.uint8
    blocks = [kmers.dense(block) for _, block in kmers.row_blocks(tokens, patterns, size=7)]
    np.testing.assert_array_equal(np.concatenate(blocks), kmers.dense(rows))


@pytest.mark.parametrize("patterns", [[(0, 1, 2, 3, 4, 5)], [kmers.mirrored(3, 2), (0, 3, 6)], [(0,)]])
def test_jax_counts_are_those_of_the_host(tokens, patterns):
    found = one_program(log_counts)(jnp.asarray(one_hot(tokens)), patterns)
    np.testing.assert_allclose(found, kmers.dense(kmers.kmer_rows(tokens, patterns)), atol=1e-6)


def test_relaxed_counts_are_expected_counts():
    rng = np.random.default_rng(2)
    probabilities = rng.dirichlet(np.ones(4), (1, 6))
    pattern = (0, 2)
    expected = np.zeros(kmers.n_columns([pattern]))
    table = kmers.canonical_columns(2)
    for place in range(4):
        for one in range(4):
            for other in range(4):
                expected[table[4 * one + other]] += probabilities[0, place, one] * probabilities[0, place + 2, other]
    np.testing.assert_allclose(soft_counts(jnp.asarray(probabilities), pattern)[0], expected, rtol=1e-5)
    assert soft_counts(jnp.asarray(probabilities), (0, 9)).sum() == 0


def test_motif_scores_are_the_best_over_places_and_strands(tokens):
    rng = np.random.default_rng(3)
    motifs = [rng.normal(size=(width, 4)).astype(np.float32) for width in (4, 7, 4, 37)]
    found = best_scores(tokens, motifs)
    for row, sequence in enumerate(tokens):
        for column, motif in enumerate(motifs):
            best = -np.inf
            for strand in (sequence, reverse_complement(sequence)):
                for place in range(37 - len(motif) + 1):
                    score = sum(motif[i, strand[place + i]] for i in range(len(motif)) if strand[place + i] < 4)
                    best = max(best, score)
            assert found[row, column] == pytest.approx(best, abs=1e-4)
    np.testing.assert_allclose(jax.jit(soft_best_scores)(jnp.asarray(one_hot(tokens)), motifs), found, atol=1e-4)
    np.testing.assert_allclose(best_scores(reverse_complement(tokens), motifs), found, atol=1e-5)
    slope = jax.jit(jax.grad(lambda x: soft_best_scores(x, motifs[:1]).sum()))(jnp.asarray(one_hot(tokens)[:1]))
    assert np.isfinite(slope).all()
    assert (np.asarray(slope) != 0).any(2).sum() == 4  # one place of the motif


@pytest.mark.parametrize(
    ("motif", "message"),
    [
        (np.zeros((3, 5)), r"'m' must be log-odds \(width, 4\), found shape \(3, 5\)"),
        (np.full((3, 4), -np.inf), "'m' has entries that are not finite: add a pseudocount"),
        (np.full((3, 4), 0.25), "'m' holds probabilities"),
        (-np.ones((38, 4)), "'m' has 38 places, more than the 37 bases"),
    ],
)
def test_bad_motifs_are_named(motif, message):
    with pytest.raises(ValueError, match=message):
        check_motifs({"m": motif}, 37)


def test_letters_of_any_kind_become_tokens():
    tokens = encode(["ACGTN", "acgtu", "RY-.é"])
    np.testing.assert_array_equal(tokens, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 3], [4] * 5])
    assert tokens.dtype == np.int8
    assert decode(tokens)[0] == "ACGTN"
    np.testing.assert_array_equal(reverse_complement(tokens)[0], [4, 0, 1, 2, 3])
    np.testing.assert_array_equal(one_hot(tokens)[0], np.eye(5, 4))
    assert encode([]).shape == (0, 0)


def test_one_strand_stands_for_both(tokens):
    chosen = one_strand(tokens)
    np.testing.assert_array_equal(chosen, one_strand(reverse_complement(tokens)))
    letters, others = decode(tokens), decode(reverse_complement(tokens))
    order = str.maketrans("ACGTN", "01234")
    for found, one, other in zip(decode(chosen), letters, others, strict=True):
        assert found == min(one, other, key=lambda text: text.translate(order))


def test_bad_sequences_are_named():
    with pytest.raises(ValueError, match="sequence 0 has 2 letters, sequence 2 has 3"):
        encode(["AC", "GT", "ACG"])
    with pytest.raises(TypeError, match="must be text, found float at position 1"):
        encode(["AC", float("nan")])
    with pytest.raises(ValueError, match="found 1 other value; the first is 7 in sequence 1 at position 2"):
        check_tokens(np.array([[0, 1, 2], [0, 1, 7]]))
    with pytest.raises(ValueError, match="must be whole numbers"):
        check_tokens(np.zeros((2, 3)))


def test_words_grow_into_the_planted_motif():
    rng = np.random.default_rng(4)
    truth = encode(["ACGGATAAGCTT"])[0]
    tokens = rng.integers(0, 4, (600, 50)).astype(np.int8)
    holds = rng.random(600) < 0.4
    for row in np.flatnonzero(holds):
        place, site = rng.integers(0, 38), truth.copy()
        site[rng.integers(12)] = rng.integers(4)
        tokens[row, place : place + 12] = site if rng.random() < 0.5 else 3 - site[::-1]
    tokens[0, :10] = 4
    motif = grow_motifs(tokens, [truth[3:9]], flank=3, rounds=3)[0]
    np.testing.assert_array_equal(motif.argmax(1), truth)
    assert (motif.max(1) > 0.8).all()  # log 4 = 1.39 for one letter alone; a site has one in twelve exchanged
    scores = best_scores(tokens, [motif])[:, 0]
    assert auroc(holds.astype(float), scores) > 0.97
    # From the other strand the same grows, turned around.
    other = grow_motifs(tokens, [3 - truth[3:9][::-1]], flank=3, rounds=3)[0]
    np.testing.assert_allclose(other, motif[::-1, ::-1], atol=1e-3)


def test_distinct_words_are_unlike_each_other():
    words = kmers.kmer_words(4)
    names = kmers.kmer_names(kmers.contiguous(4))
    assert ["".join("ACGT"[base] for base in word) for word in words] == names
    weight = np.random.default_rng(5).random(len(words))
    chosen = distinct_words(words, weight, 8)
    assert len(chosen) == 8
    np.testing.assert_array_equal(chosen[0], words[weight.argmax()])
    for number, one in enumerate(chosen):
        for other in chosen[:number]:
            for strand in (one, 3 - one[::-1]):
                assert (strand != other).sum() > 1
                assert (strand[1:] != other[:-1]).any()
                assert (strand[:-1] != other[1:]).any()
