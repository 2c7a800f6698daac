from __future__ import annotations

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio


def regions(cells=("T", "B", "NK"), axis="var"):
    table = pd.DataFrame({"chrom": "chr1", "start": [0, 100], "end": [50, 150]}, index=["a", "b"])
    other = pd.DataFrame(index=list(cells))
    obs, var = (other, table) if axis == "var" else (table, other)
    return anndata.AnnData(np.zeros((len(obs), len(var)), np.float32), obs=obs, var=var)


GENES = ["GATA1", "SPI1", "ACTB"]
COUNTS = np.array([[1, 0, 9], [3, 2, 5], [0, 0, 4], [2, 2, 6], [0, 5, 5], [7, 7, 7]])
LABELS = ["T", "T", "B", "NK", "B", None]


def cells(kind=np.asarray):
    obs = pd.DataFrame({"type": pd.Categorical(LABELS)}, index=[f"cell{number}" for number in range(6)])
    return anndata.AnnData(kind(COUNTS.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))


def log_cpm(counts):
    """Of all genes, row by row."""
    return np.log2(counts / counts.sum(1, keepdims=True) * 1e6 + 1)


SUMS = np.array([COUNTS[[0, 1]].sum(0), COUNTS[[2, 4]].sum(0), COUNTS[3]])  # T, B, NK


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_pseudobulk_of_cells(kind):
    adata = regions()
    dbio.pp.tf_context(adata, cells(kind), groupby="type", tfs=["SPI1", "GATA1"])
    found = adata.obsm["tf_context"]
    np.testing.assert_allclose(found.to_numpy(), log_cpm(SUMS)[:, [1, 0]], rtol=1e-6)
    assert list(found.columns) == ["SPI1", "GATA1"]
    assert list(found.index) == ["T", "B", "NK"]
    report = adata.uns["tf_context"]["report"]
    assert report["n_cells"] == {"T": 2, "B": 2, "NK": 1}
    assert report["normalized"]


def test_mudata_takes_labels_of_either_table():
    part = cells()
    labels = part.obs.pop("type")
    mdata = mudata.MuData({"rna": part, "atac": cells()[:, :2].copy()})
    mdata.obs["type"] = labels.reindex(mdata.obs_names)
    adata = regions()
    dbio.pp.tf_context(adata, mdata, groupby="type")
    np.testing.assert_allclose(adata.obsm["tf_context"].to_numpy(), log_cpm(SUMS), rtol=1e-6)
    assert "type" not in mdata["rna"].obs
    with pytest.raises(KeyError, match="no modality 'expr'"):
        dbio.pp.tf_context(adata, mdata, modality="expr")
    with pytest.raises(KeyError, match="no column 'kind'"):
        dbio.pp.tf_context(adata, mdata, groupby="kind")


def test_tables_and_objects_of_cell_types():
    table = pd.DataFrame(SUMS, index=["T", "B", "NK"], columns=GENES)
    bulk = anndata.AnnData(sp.csr_matrix(SUMS.astype(np.float32)), obs=table[[]], var=pd.DataFrame(index=GENES))
    for expression in (table, bulk, table.iloc[[2, 0, 1]]):
        adata = regions()
        dbio.pp.tf_context(adata, expression, tfs=["SPI1"])
        np.testing.assert_allclose(adata.obsm["tf_context"].to_numpy(), log_cpm(SUMS)[:, [1]], rtol=1e-6)
    # Values that are no counts stay as they are; so do counts where that is asked for.
    adata = regions(axis="obs")
    dbio.pp.tf_context(adata, table / 7)
    np.testing.assert_allclose(adata.varm["tf_context"].to_numpy(), SUMS / 7, rtol=1e-6)
    dbio.pp.tf_context(adata, table, normalize=False, key_added="raw")
    np.testing.assert_array_equal(adata.varm["raw"].to_numpy(), SUMS)
    dbio.pp.tf_context(adata, table / 7, normalize=True, key_added="cpm")
    np.testing.assert_allclose(adata.varm["cpm"].to_numpy(), log_cpm(SUMS), rtol=1e-6)


def test_cell_types_without_expression_are_nan():
    table = pd.DataFrame(SUMS / 7, index=["T", "B", "HSC"], columns=GENES)
    adata = regions()
    with pytest.warns(UserWarning, match=r"1 of 3 cell types have no expression: \['NK'\]"):
        dbio.pp.tf_context(adata, table)
    assert adata.obsm["tf_context"].isna().to_numpy().tolist() == [[False] * 3, [False] * 3, [True] * 3]
    report = adata.uns["tf_context"]["report"]
    assert list(report["missing_cell_types"]) == ["NK"]
    assert list(report["unused_cell_types"]) == ["HSC"]
    # A row of NaN says the same.
    given = pd.DataFrame(SUMS / 7, index=["T", "B", "NK"], columns=GENES)
    given.loc["B"] = np.nan
    with pytest.warns(UserWarning, match=r"\['B'\]"):
        dbio.pp.tf_context(adata, given)
    assert adata.obsm["tf_context"].isna().all(axis=1).tolist() == [False, True, False]


def test_names_count_by_case_and_the_message_says_so():
    table = pd.DataFrame(SUMS / 7, index=["t", "b", "nk"], columns=GENES)
    with pytest.raises(ValueError, match="3 differ in case alone .'T' and 't'"):
        dbio.pp.tf_context(regions(), table)
    with pytest.raises(ValueError, match="none of the 2 tfs.*'Gata1' and 'GATA1'"):
        dbio.pp.tf_context(regions(), table.set_axis(["T", "B", "NK"]), tfs=["Gata1", "Spi1"])
    with pytest.warns(UserWarning, match="1 factors are not in expression.*'Spi1' and 'SPI1'"):
        adata = dbio.pp.tf_context(regions(), table.set_axis(["T", "B", "NK"]), tfs=["GATA1", "Spi1"], copy=True)
    assert list(adata.obsm["tf_context"].columns) == ["GATA1"]
    with pytest.warns(UserWarning, match="'NK' and 'nk'"):
        dbio.pp.tf_context(regions(), table.set_axis(["T", "B", "nk"]))


def test_shapes_that_are_the_wrong_way():
    table = pd.DataFrame(SUMS / 7, index=["T", "B", "NK"], columns=GENES)
    with pytest.raises(ValueError, match=r"pass the table transposed, \.T"):
        dbio.pp.tf_context(regions(), table.T)
    many = anndata.AnnData(np.ones((100, 3), np.float32), var=pd.DataFrame(index=GENES))
    with pytest.raises(ValueError, match="pass groupby="):
        dbio.pp.tf_context(regions(), many)


def test_bad_values():
    good = pd.DataFrame(SUMS / 7, index=["T", "B", "NK"], columns=GENES)

    def changed(value):
        table = good.astype(object) if isinstance(value, str) else good.copy()
        table.iloc[1, 2] = value
        return table

    for value, message in (
        (np.nan, "missing values within a cell type: 1, first in 'B', gene 'ACTB'"),
        (np.inf, "infinite values: 1"),
        ("high", "must hold numbers, found 'high' in row 'B', column 'ACTB'"),
    ):
        with pytest.raises(ValueError, match=message):
            dbio.pp.tf_context(regions(), changed(value))
    with pytest.raises(ValueError, match="negative values, which are no counts"):
        dbio.pp.tf_context(regions(), changed(-1.0), normalize=True)
    with pytest.raises(ValueError, match="without any count: .'B'"):
        dbio.pp.tf_context(regions(), good.mul([1, 0, 1], axis=0), normalize=True)
    normal = cells()
    normal.X = np.log1p(normal.X)
    with pytest.raises(ValueError, match="raw counts, found non-integer"):
        dbio.pp.tf_context(regions(), normal, groupby="type")
    with pytest.raises(ValueError, match="must be unique.*GATA1"):
        dbio.pp.tf_context(regions(), good.set_axis(["GATA1", "GATA1", "ACTB"], axis=1))
    with pytest.raises(ValueError, match="must be unique.*'T'"):
        dbio.pp.tf_context(regions(), good.set_axis(["T", "T", "NK"]))
    with pytest.raises(TypeError, match="expression must be a table"):
        dbio.pp.tf_context(regions(), SUMS)
    with pytest.raises(TypeError, match="tfs must be a list"):
        dbio.pp.tf_context(regions(), good, tfs="GATA1")
    with pytest.raises(ValueError, match="groupby and layer are for an AnnData"):
        dbio.pp.tf_context(regions(), good, groupby="type")
    with pytest.raises(KeyError, match="no 'counts'"):
        dbio.pp.tf_context(regions(), cells(), layer="counts")
    wide = pd.DataFrame(np.ones((3, 5001)), index=["T", "B", "NK"])
    with pytest.raises(ValueError, match="5,001 genes: pass tfs="):
        dbio.pp.tf_context(regions(), wide)
    adata = regions()
    with pytest.raises(ValueError, match="missing values"):
        dbio.pp.tf_context(adata, changed(np.nan))
    assert not adata.obsm
    assert not adata.uns


def test_constant_factors_are_told():
    table = pd.DataFrame(np.ones((3, 2)) * 0.5, index=["T", "B", "NK"], columns=["a", "b"])
    with pytest.warns(UserWarning, match="tell no cell types apart"):
        dbio.pp.tf_context(regions(), table)


def test_files(tmp_path):
    adata = regions()
    with pytest.warns(UserWarning, match="cannot store '/'"):
        dbio.pp.tf_context(adata, pd.DataFrame(SUMS / 7, index=["T", "B", "NK"], columns=["A/B", "C", "D"]))
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for read in (anndata.read_h5ad(tmp_path / "a.h5ad"), anndata.read_zarr(tmp_path / "a.zarr")):
        pd.testing.assert_frame_equal(read.obsm["tf_context"], adata.obsm["tf_context"], check_names=False)
