"""Sizes of cells from samples of known composition."""

from __future__ import annotations

import numpy as np

from diffbio_sc.numerics.counts.cell_sizes import sizes_from_samples


def test_sizes_are_recovered_from_exact_shares_of_rna():
    rng = np.random.default_rng(0)
    sizes = np.array([1.0, 3.0, 0.5, 8.0])
    cells = rng.dirichlet(np.ones(4), 4000)
    rna = cells * sizes
    rna /= rna.sum(1, keepdims=True)
    found = sizes_from_samples(rna, cells, np.full(4, 2.0))
    np.testing.assert_allclose(found / found[0], sizes, rtol=5e-3)
    np.testing.assert_allclose(np.log(found).mean(), np.log(2.0), atol=1e-9)


def test_the_likelihood_is_at_its_maximum():
    rng = np.random.default_rng(1)
    cells, rna = rng.dirichlet(np.ones(3), 6), rng.dirichlet(np.ones(3), 6)
    start = np.array([1.0, 2.0, 3.0])
    found = np.log(sizes_from_samples(rna, cells, start))
    average = cells.mean(0) + 1e-6
    rows = [*zip(rna, cells, strict=True), (average * start / (average * start).sum(), average / average.sum())]

    def likelihood(log_size):
        return sum(one @ (log_size - np.log(share @ np.exp(log_size))) for one, share in rows)

    for step in rng.normal(0, 1e-3, (50, 3)):
        assert likelihood(found + step) <= likelihood(found) + 1e-12


def test_a_type_that_no_sample_holds_keeps_its_size_among_the_others():
    cells = np.array([[0.5, 0.5, 0.0], [0.3, 0.7, 0.0]])
    rna = cells * [1.0, 1.0, 0.0]
    found = sizes_from_samples(rna, cells, np.array([1.0, 1.0, 5.0]))
    np.testing.assert_allclose(found / found[0], [1.0, 1.0, 5.0], rtol=1e-3)
