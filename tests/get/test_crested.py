from __future__ import annotations

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio


def test_layout_of_crested():
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=30)
    adata.layers["contextual_prob"] = np.random.default_rng(0).random(adata.shape).astype(np.float32)
    adata.var["contextual_split"] = ["train", "val", "test"] * 10
    found = dbio.get.crested(adata)
    assert list(found.var.columns[:3]) == ["chr", "start", "end"]
    assert found.var_names[0] == f"{found.var['chr'].iloc[0]}:{found.var['start'].iloc[0]}-{found.var['end'].iloc[0]}"
    assert found.var["split"].tolist() == ["train", "val", "test"] * 10
    assert found.var["sequence"].tolist() == adata.var["sequence"].tolist()
    np.testing.assert_array_equal(found.X, adata.X)
    np.testing.assert_array_equal(found.layers["contextual"], adata.layers["contextual_prob"])
    assert list(found.obs_names) == list(adata.obs_names)


def test_regions_along_obs_and_sparse_values_are_turned():
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=30)
    other = anndata.AnnData(sp.csr_matrix(adata.X.T.astype(np.float32)), obs=adata.var.copy(), var=adata.obs.copy())
    found = dbio.get.crested(other)
    assert isinstance(found.X, sp.csr_matrix)
    np.testing.assert_array_equal(found.X.toarray(), adata.X)
    found.X[0] = 0  # a copy
    assert other.X.sum() == adata.X.sum()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_values_in_a_file(tmp_path, sparse, turned):
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=30)
    adata.X = sp.csr_matrix(adata.X) if sparse else adata.X
    adata = adata.T.copy() if turned else adata
    adata.write_h5ad(tmp_path / "regions.h5ad")
    backed = anndata.read_h5ad(tmp_path / "regions.h5ad", backed="r")
    found, expected = dbio.get.crested(backed).X, dbio.get.crested(adata).X
    np.testing.assert_array_equal(*(one.toarray() if sparse else one for one in (found, expected)))


def test_what_crested_cannot_hold():
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=30)
    adata.var.iloc[1, :3] = adata.var.iloc[0, :3]
    with pytest.raises(ValueError, match="more than once"):
        dbio.get.crested(adata)
    with pytest.raises(KeyError, match="no 'counts'"):
        dbio.get.crested(adata, layer="counts")
