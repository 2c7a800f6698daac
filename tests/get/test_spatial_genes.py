from __future__ import annotations

import importlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest

spatial_genes = importlib.import_module("diffbio_sc.get._spatial_genes").spatial_genes

COLUMNS = [
    "gene", "fsv", "fsv_se", "spatial_lengthscale", "spatial_lfdr", "spatial_pvalue", "spatial_padj", "spatial_score",
    "is_spatial",
]  # fmt: skip


@pytest.fixture
def result():
    # "c" and "e" are beyond the smallest number: only their scores tell them apart. "b" was not tested.
    pvalue = np.array([0.5, np.nan, 0.0, 1e-20, 0.0, 0.01])
    score = np.array([-np.log10(0.5), np.nan, 400.0, 20.0, 650.0, 2.0])
    adata = ad.AnnData(np.ones((3, 6), np.float32))
    adata.var_names = list("abcdef")
    adata.var["spatial_pvalue"] = pvalue
    adata.var["spatial_padj"] = pvalue * 2
    adata.var["spatial_lfdr"] = pvalue / 2
    adata.var["spatial_score"] = score
    adata.var["is_spatial"] = [False, False, True, True, True, True]
    adata.var["fsv"] = np.arange(6, dtype=np.float32) / 10
    adata.var["fsv_se"] = np.float32(0.1)
    adata.var["spatial_lengthscale"] = np.arange(6, dtype=np.float32)
    return adata


def test_genes_are_sorted_by_p_and_in_the_deep_tail_by_score(result):
    table = spatial_genes(result)
    assert list(table.columns) == COLUMNS
    assert list(table["gene"]) == ["e", "c", "d", "f", "a", "b"]
    assert list(table.index) == list(range(6))
    for name in COLUMNS[1:]:
        np.testing.assert_array_equal(table[name], result.var.loc[table["gene"], name])
    assert table["is_spatial"].dtype == bool


def test_significant_and_top_genes(result):
    assert list(spatial_genes(result, significant=True)["gene"]) == ["e", "c", "d", "f"]
    assert list(spatial_genes(result, n_top=2)["gene"]) == ["e", "c"]
    assert list(spatial_genes(result, significant=True, n_top=10)["gene"]) == ["e", "c", "d", "f"]


def test_patterns_of_the_same_test_are_added(result):
    result.var["spatial_pattern"] = pd.Categorical([None, None, "0", "1", "0", "1"], categories=["0", "1"])
    table = spatial_genes(result)
    assert list(table.columns) == [*COLUMNS, "spatial_pattern"]
    assert list(table["spatial_pattern"][:4]) == ["0", "0", "1", "1"]
    assert table["spatial_pattern"].isna().tolist() == [False] * 4 + [True] * 2
    result.uns["spatial_patterns"] = {"params": {"key": "another"}}
    assert list(spatial_genes(result).columns) == COLUMNS


def test_another_key_and_a_test_without_variances(result):
    result.var = result.var.drop(columns=["fsv", "fsv_se", "spatial_lengthscale"]).add_prefix("mine_")
    table = spatial_genes(result, key="mine")
    assert list(table.columns) == COLUMNS
    assert list(table["gene"][:2]) == ["e", "c"]
    assert table["fsv"].isna().all()


def test_missing_result_and_bad_arguments_are_named(result):
    with pytest.raises(KeyError, match="'other_spatial_pvalue'.*run diffbio_sc.tl.spatial_genes"):
        spatial_genes(result, key="other")
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="n_top must be a whole number"):
            spatial_genes(result, n_top=bad)
