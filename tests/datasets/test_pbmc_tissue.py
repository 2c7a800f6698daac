from __future__ import annotations

import numpy as np
import pytest
import scanpy
import scipy.sparse as sp

import diffbio_sc as dbio
from diffbio_sc.datasets._pbmc_tissue import recover_counts


def test_counts_are_recovered_exactly_from_log_normalised_values():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(0.5, (50, 200)).astype(np.float32))
    total = np.asarray(counts.sum(1)).ravel()
    logged = sp.csr_matrix(sp.diags(1e4 / total) @ counts)
    logged.data = np.log1p(logged.data)
    np.testing.assert_array_equal(recover_counts(logged.astype(np.float32)).toarray(), counts.toarray())


def test_recovered_counts_reproduce_scanpys_values():
    raw = sp.csr_matrix(scanpy.datasets.pbmc68k_reduced().raw.X)
    counts = recover_counts(raw)
    expected = np.expm1(raw.astype(np.float64)).tocsr()
    for cell in (0, 100, 699):
        ratio = expected[cell].data / counts[cell].data
        assert ratio.std() / ratio.mean() < 0.01


def test_truth_is_the_mixture_and_no_cell_is_on_both_sides():
    spots, reference = dbio.datasets.pbmc_tissue(n_spots=50, rng=3)
    truth = spots.obsm["truth"]
    np.testing.assert_allclose(truth.sum(axis=1), 1)
    cells = truth.mul(spots.obs["n_cells"], axis=0)
    np.testing.assert_allclose(cells, cells.round(), atol=1e-9)
    assert set(truth.columns) == set(reference.obs["cell_type"].cat.categories)
    assert reference.obs_names.is_unique
    again, _ = dbio.datasets.pbmc_tissue(n_spots=50, rng=3)
    np.testing.assert_array_equal(spots.X.toarray(), again.X.toarray())


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="n_spots must be a whole number of at least 4"):
        dbio.datasets.pbmc_tissue(n_spots=1)
