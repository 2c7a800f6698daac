from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio


def table(rows):
    """Peaks from (chrom, summit, q), 200 bp wide."""
    frame = pd.DataFrame(rows, columns=["chrom", "summit", "qValue"])
    return pd.DataFrame(
        {"chrom": frame["chrom"], "start": frame["summit"] - 100, "end": frame["summit"] + 100, "peak": 100,
         "qValue": frame["qValue"].astype(float), "pValue": frame["qValue"] + 1.0, "signalValue": 5.0}
    )  # fmt: skip


def greedy(tables, width):
    """Iterative overlap removal, one peak at a time."""
    rows = []
    for name, one in tables.items():
        total = one["qValue"].sum()
        for row in one.itertuples():
            rows.append((row.qValue / total, row.chrom, row.start + row.peak - width // 2, name))
    kept = []
    for row in sorted(rows, key=lambda row: -row[0]):
        if all(row[1] != other[1] or abs(row[2] - other[2]) >= width for other in kept):
            kept.append(row)
    return {(chrom, start) for _, chrom, start, _ in kept}


def test_best_peak_is_kept_and_those_that_overlap_it_are_removed():
    rng = np.random.default_rng(0)
    tables = {
        name: table(
            [
                (f"chr{rng.integers(1, 4)}", int(rng.integers(1000, 60_000)), float(rng.uniform(2, 50)))
                for _ in range(120)
            ]
        )
        for name in ("a", "b", "c")
    }
    merged = dbio.tl.merge_peaks(tables, width=501)
    assert set(zip(merged["chrom"], merged["start"], strict=True)) == greedy(tables, 501)
    assert ((merged["end"] - merged["start"]) == 501).all()
    for _, rows in merged.groupby("chrom"):
        assert (rows["start"].to_numpy()[1:] >= rows["end"].to_numpy()[:-1]).all()
    for name, one in tables.items():
        for row in merged.itertuples():
            overlap = ((one["chrom"] == row.chrom) & (one["start"] < row.end) & (one["end"] > row.start)).any()
            assert getattr(row, name) == overlap
    np.testing.assert_array_equal(merged["n_groups"], merged[["a", "b", "c"]].sum(axis=1))
    assert merged["score"].between(0, 1000).all()


def test_depth_of_a_group_does_not_outvote_others_and_order_does_not_matter():
    strong = table([("chr1", 5000, 100.0), ("chr1", 9000, 300.0)])
    weak = table([("chr1", 5100, 9.0), ("chr1", 20_000, 1.0)])
    merged = dbio.tl.merge_peaks({"strong": strong, "weak": weak})
    # 100 of 400 against 9 of 10.
    assert 5100 - 250 in set(merged["start"])
    other = dbio.tl.merge_peaks({"weak": weak, "strong": strong})
    pd.testing.assert_frame_equal(merged, other[list(merged.columns)])


def test_windows_stay_inside_chromosomes():
    merged = dbio.tl.merge_peaks({"a": table([("chr1", 120, 5.0), ("chr1", 9950, 5.0)])}, chrom_sizes={"chr1": 10_000})
    assert merged["start"].tolist() == [0, 10_000 - 501]
    assert (merged["start"] + merged["peak"]).tolist() == [120, 9950]


def test_no_peaks_and_one_empty_group():
    empty = table([])
    assert len(dbio.tl.merge_peaks({"a": empty, "b": empty})) == 0
    merged = dbio.tl.merge_peaks({"a": empty, "b": table([("chr1", 5000, 3.0)])})
    assert merged["n_groups"].tolist() == [1]
    assert not merged["a"].any()


def test_object_holds_the_result(tmp_path):
    adata = ad.AnnData(np.zeros((2, 3), np.float32))
    with pytest.raises(KeyError, match="no peaks 'peaks': run diffbio_sc.tl.peaks"):
        dbio.tl.merge_peaks(adata)
    adata.uns["peaks"] = {
        "groups": np.array(["a", "b"]),
        "tables": {"a": table([("chr1", 5000, 3.0)]), "b": table([("chr1", 5050, 4.0), ("chr2", 700, 4.0)])},
    }
    assert dbio.tl.merge_peaks(adata) is None
    merged = adata.uns["peaks_merged"]
    assert merged["n_groups"].tolist() == [2, 1]
    adata.write_h5ad(tmp_path / "x.h5ad")
    assert ad.read_h5ad(tmp_path / "x.h5ad").uns["peaks_merged"]["a"].tolist() == [True, False]


def test_bad_arguments_are_named():
    good = table([("chr1", 5000, 3.0)])
    with pytest.raises(ValueError, match="width must be"):
        dbio.tl.merge_peaks({"a": good}, width=0)
    with pytest.raises(ValueError, match="at least one table"):
        dbio.tl.merge_peaks({})
    with pytest.raises(KeyError, match="'a' has no columns \\['chrom'\\]"):
        dbio.tl.merge_peaks({"a": good.drop(columns="chrom")})
    with pytest.raises(ValueError, match="clash"):
        dbio.tl.merge_peaks({"score": good})
