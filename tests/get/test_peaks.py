from __future__ import annotations

import importlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest

peaks = importlib.import_module("diffbio_sc.get._peaks").peaks


def table(starts, q):
    return pd.DataFrame(
        {"chrom": "chr1", "start": starts, "end": np.asarray(starts) + 100, "qValue": np.asarray(q, float)}
    )


@pytest.fixture
def result():
    adata = ad.AnnData(np.ones((2, 2), np.float32))
    adata.uns["peaks"] = {
        "groups": np.array(["b", "a", "none"]),
        "tables": {"a": table([5, 900], [2, 8]), "b": table([7], [1.5]), "none": table([], [])},
    }
    return adata


def test_tables_of_all_groups_in_their_order(result):
    tidy = peaks(result)
    assert tidy["group"].tolist() == ["b", "a", "a"]
    assert list(tidy["group"].cat.categories) == ["b", "a", "none"]
    assert tidy["start"].tolist() == [7, 5, 900]
    assert list(tidy.columns[:4]) == ["group", "chrom", "start", "end"]


def test_groups_and_rates_are_chosen(result):
    assert peaks(result, groups="a")["start"].tolist() == [5, 900]
    assert peaks(result, max_qvalue=1e-2)["start"].tolist() == [5, 900]
    assert peaks(result, max_qvalue=1e-5)["start"].tolist() == [900]
    assert len(peaks(result, groups=["none"])) == 0


def test_missing_results_and_bad_arguments_are_named(result):
    with pytest.raises(KeyError, match="no peaks 'other'.*keys: \\['peaks'\\]"):
        peaks(result, key="other")
    with pytest.raises(KeyError, match="no peaks of groups \\['c'\\]"):
        peaks(result, groups=["a", "c"])
    with pytest.raises(ValueError, match="max_qvalue must be a number above 0 and at most 1"):
        peaks(result, max_qvalue=2)
