"""Pseudobulks of tiles and of fragments, and regions from names."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio
from diffbio_sc.io import Intervals

LABELS = ["T", "B", None, "T", "NK", "B", "T"]


def _tiles(kind="csr", side="var", folder=None):
    counts = np.random.default_rng(0).poisson(1.0, (7, 12))
    bins = pd.DataFrame(
        {"chrom": ["a"] * 8 + ["b"] * 4, "start": [*range(0, 80, 10), *range(0, 40, 10)]},
        index=[f"tile{number}" for number in range(12)],
    )
    bins["end"] = bins["start"] + 10
    cells = pd.DataFrame({"type": pd.Categorical(LABELS)}, index=[f"c{number}" for number in range(7)])
    adata = ad.AnnData(sp.csr_matrix(counts), obs=cells, var=bins, layers={"double": sp.csr_matrix(2 * counts)})
    adata = adata if side == "var" else adata.T.copy()
    if kind == "dense":
        adata.X = adata.X.toarray()
    if kind.startswith("dask"):
        array = pytest.importorskip("dask.array").from_array(adata.X.toarray(), chunks=(3, 5))
        adata.X = array if kind == "dask" else array.map_blocks(sp.csr_matrix)
    if kind.startswith("backed"):
        adata.X = {"backed-dense": np.asarray, "backed-csr": sp.csr_matrix, "backed-csc": sp.csc_matrix}[kind](
            adata.X.toarray()
        )
        adata.write_h5ad(folder / "a.h5ad")
        adata = ad.read_h5ad(folder / "a.h5ad", backed="r")
    return adata, counts


@pytest.mark.parametrize("kind", ["csr", "dense", "dask", "dask-sparse", "backed-dense", "backed-csr", "backed-csc"])
@pytest.mark.parametrize("side", ["var", "obs"])
def test_tiles_add_up_by_label(kind, side, tmp_path):
    adata, counts = _tiles(kind, side, tmp_path)
    groups = dbio.pp.pseudobulk(adata, groupby="type")
    assert list(groups.obs_names) == ["B", "NK", "T"]
    expected = [counts[[label == name for label in LABELS]].sum(axis=0) for name in groups.obs_names]
    np.testing.assert_array_equal(groups.X.toarray(), expected)
    assert groups.obs["n_cells"].tolist() == [2, 1, 3]
    assert groups.var["start"].tolist() == [*range(0, 80, 10), *range(0, 40, 10)]
    np.testing.assert_array_equal(
        dbio.pp.pseudobulk(adata, groupby="type", layer="double").X.toarray(), 2 * np.array(expected)
    )


@pytest.mark.parametrize("side", ["var", "obs"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "bool"],
)
def test_counts_of_any_type_add_up_as_in_float64(dtype, sparse, side):
    if sparse and dtype == "float16":
        pytest.skip("scipy has no sparse half precision")
    largest = 1 if dtype == "bool" else 127  # sums of these are beyond 8 bits
    counts = np.random.default_rng(0).integers(0, largest + 1, (40, 12)).astype(dtype)
    labels = np.repeat(["a", "b"], 20)
    bins = pd.DataFrame({"chrom": "c", "start": np.arange(12) * 5, "end": np.arange(12) * 5 + 5})
    bins.index = bins.index.astype(str)
    cells = pd.DataFrame({"type": labels}, index=[f"c{number}" for number in range(40)])
    values, tables = (counts, (cells, bins)) if side == "var" else (counts.T, (bins, cells))
    adata = ad.AnnData(sp.csr_matrix(values) if sparse else values, obs=tables[0], var=tables[1])
    found = dbio.pp.pseudobulk(adata, groupby="type")
    expected = [counts[labels == name].astype(np.float64).sum(axis=0) for name in "ab"]
    np.testing.assert_array_equal(found.X.toarray(), expected)
    assert found.X.dtype == np.float64


@pytest.mark.parametrize("side", ["var", "obs"])
def test_regions_that_overlap_add_up(side):
    adata, counts = _tiles(side=side)
    getattr(adata, side)["end"] += 3
    groups = dbio.pp.pseudobulk(adata, groupby="type")
    np.testing.assert_array_equal(groups["T"].X.toarray()[0], counts[[label == "T" for label in LABELS]].sum(axis=0))
    with pytest.raises(ValueError, match="overlapping bins"):
        dbio.tl.peaks(groups)


def test_results_are_stored(tmp_path):
    groups = dbio.pp.pseudobulk(_tiles()[0], groupby="type")
    groups.write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "a.h5ad").X.toarray(), groups.X.toarray())


def test_objects_that_are_none():
    with pytest.raises(TypeError, match="found the path 'a.h5ad': read it first, with anndata.read_h5ad"):
        dbio.pp.pseudobulk("a.h5ad", groupby="type")
    with pytest.raises(TypeError, match="source must be an AnnData, found DataFrame"):
        dbio.pp.pseudobulk(pd.DataFrame(), groupby="type")
    with pytest.raises(TypeError, match="adata must be an AnnData, found str 'a.h5ad': read the file first"):
        dbio.pp.parse_regions("a.h5ad")
    mudata = pytest.importorskip("mudata")
    with pytest.raises(TypeError, match="found MuData; of a MuData pass the modality"):
        dbio.pp.parse_regions(mudata.MuData({"atac": _tiles()[0]}))


def test_what_cannot_be_added_up():
    adata, _ = _tiles()
    with pytest.raises(KeyError, match=r"adata.obs has no column 'x'; columns: \['type'\]"):
        dbio.pp.pseudobulk(adata, groupby="x")
    with pytest.raises(TypeError, match="groupby must name a column"):
        dbio.pp.pseudobulk(adata, groupby={"c0": "T"})
    adata.X = adata.X * 0.5
    with pytest.raises(ValueError, match="raw counts"):
        dbio.pp.pseudobulk(adata, groupby="type")
    with pytest.raises(KeyError, match="chrom"):
        dbio.pp.pseudobulk(ad.AnnData(np.ones((2, 2))), groupby="type")


def _fragments(rng, rows=500):
    start = rng.integers(0, 1000, rows)
    return Intervals.from_arrays(
        rng.choice(["chr2", "chr1", "chrX"], rows),
        start,
        start + rng.integers(1, 100, rows),
        cell_code=rng.integers(0, 7, rows),
        barcodes=[f"c{number}" for number in range(7)],
        sizes={"chr1": 1100, "chr2": 1100, "chrX": 1100},
    )


def test_fragments_split_by_label():
    adata, _ = _tiles()
    fragments = _fragments(np.random.default_rng(1))
    groups = dbio.pp.pseudobulk(fragments, groupby=adata.obs["type"])
    assert list(groups) == ["B", "NK", "T"]
    frame = fragments.to_frame().astype({"barcode": str, "chrom": str})
    for name, group in groups.items():
        cells = [f"c{number}" for number, label in enumerate(LABELS) if label == name]
        expected = frame[frame["barcode"].isin(cells)]
        found = group.to_frame().astype({"barcode": str, "chrom": str})
        pd.testing.assert_frame_equal(found.reset_index(drop=True), expected.reset_index(drop=True))
        assert group.sizes == fragments.sizes
        assert name in group.name
    # The same counts, whether fragments are split first or counted by label.
    counted = dbio.pp.coverage(fragments, bin_size=50, groupby=adata.obs["type"])
    split = dbio.pp.coverage(groups, bin_size=50)
    assert list(split.obs_names) == list(counted.obs_names)
    np.testing.assert_array_equal(split.X.toarray(), counted.X.toarray())


def _snapatac2(fragments):
    """The fragments as SnapATAC2 keeps them: lengths at the start, in a matrix of cells by base pairs."""
    frame = fragments.to_frame().astype({"barcode": str, "chrom": str})
    sizes = {"chr1": 1100, "chrX": 1100, "chr2": 1100}
    offset = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    rows = [[] for _ in LABELS]
    for chrom, start, end, barcode in frame[["chrom", "start", "end", "barcode"]].itertuples(index=False):
        rows[int(barcode[1:])].append((offset[chrom] + start, end - start))
    indices, data = np.array([entry for row in rows for entry in sorted(row)]).T
    matrix = sp.csr_matrix((data, indices, np.cumsum([0, *map(len, rows)])), shape=(7, 3300))
    adata = ad.AnnData(
        obs=pd.DataFrame({"type": pd.Categorical(LABELS)}, index=[f"c{number}" for number in range(7)]),
        obsm={"fragment_paired": matrix},
    )
    adata.uns["reference_sequences"] = pd.DataFrame(
        {"reference_seq_name": list(sizes), "reference_seq_length": list(sizes.values())}
    )
    return adata


def test_fragments_of_snapatac2_are_those_of_the_file():
    fragments = _fragments(np.random.default_rng(1))
    adata = _snapatac2(fragments)
    expected = dbio.pp.pseudobulk(fragments, groupby=adata.obs["type"])
    found = dbio.pp.pseudobulk(adata, groupby="type")
    assert list(found) == list(expected)
    for name, group in found.items():
        frames = [part.to_frame().astype({"chrom": str})[["chrom", "start", "end"]] for part in (group, expected[name])]
        left, right = (frame.sort_values(list(frame.columns)).reset_index(drop=True) for frame in frames)
        pd.testing.assert_frame_equal(left, right)
        assert group.sizes == fragments.sizes
    with pytest.warns(UserWarning, match="fewer than 50 cells"):
        tables = dbio.tl.call_peaks(adata, groupby="type", mode="narrow")
    with pytest.warns(UserWarning, match="fewer than 50 cells"):
        again = dbio.tl.call_peaks(fragments, groupby=adata.obs["type"], mode="narrow")
    for name, table in tables.items():
        assert len(table) == len(again[name])


def test_fragments_of_snapatac2_are_counted_in_bins():
    fragments = _fragments(np.random.default_rng(1))
    adata = _snapatac2(fragments)
    for groupby in ("sample", "barcode", adata.obs["type"]):
        found, expected = (
            dbio.pp.coverage(source, bin_size=50, groupby=groupby, chrom_sizes=fragments.sizes)
            for source in (adata, fragments)
        )
        assert list(found.obs_names) == list(expected.obs_names)
        np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    with pytest.raises(TypeError, match="found AnnData without fragments"):
        dbio.pp.coverage(_tiles()[0])


def test_bad_fragments_of_snapatac2_are_named():
    adata = _snapatac2(_fragments(np.random.default_rng(1)))
    with pytest.raises(KeyError, match=r"adata.obs has no column 'x'; columns: \['type'\]"):
        dbio.pp.pseudobulk(adata, groupby="x")
    with pytest.raises(KeyError, match="adata.obs has no column 'x'"):
        dbio.tl.call_peaks(adata, groupby="x")
    short = adata.copy()
    short.uns["reference_sequences"] = adata.uns["reference_sequences"][:2]
    with pytest.raises(ValueError, match=r"each of the 2,200 base pairs of the 2 sequences .* found 3,300"):
        dbio.pp.pseudobulk(short, groupby="type")
    del short.uns["reference_sequences"]
    with pytest.raises(KeyError, match=r"needs adata.uns\['reference_sequences'\]"):
        dbio.pp.pseudobulk(short, groupby="type")
    for value, problem in ((2000, "1 that reach beyond; the first is chr1:"), (-5, "lengths above 0, found -5")):
        bad = adata.copy()
        bad.obsm["fragment_paired"].data[0] = value
        with pytest.raises(ValueError, match=problem):
            dbio.pp.pseudobulk(bad, groupby="type")
    half = adata.copy()
    half.obsm["fragment_paired"] = half.obsm["fragment_paired"] * 0.5
    with pytest.raises(ValueError, match="must be whole numbers"):
        dbio.pp.pseudobulk(half, groupby="type")
    adata.obsm["fragment_paired"].data[0] = -5
    with pytest.raises(ValueError, match="lengths above 0, found -5"):
        dbio.pp.pseudobulk(adata, groupby="type")


def test_splitting_needs_labels_of_barcodes():
    fragments = _fragments(np.random.default_rng(2))
    with pytest.raises(TypeError, match=r"adata.obs\['type'\]"):
        dbio.pp.pseudobulk(fragments, groupby="type")
    with pytest.raises(ValueError, match="none of the 1 barcodes"):
        dbio.pp.pseudobulk(fragments, groupby={"c0-1": "T"})
    with pytest.raises(ValueError, match="barcodes must be unique"):
        dbio.pp.pseudobulk(fragments, groupby=pd.Series(["T", "B"], index=["c0", "c0"]))


@pytest.mark.parametrize("style", ["{}:{}-{}", "{}-{}-{}", "{}_{}_{}", "{}:{:,}-{:,}"])
def test_regions_from_names(style):
    regions = [("chr1", 9790, 10675), ("chrUn_KI270442v1", 0, 500), ("HLA-A*01:01", 5, 6000)]
    adata = ad.AnnData(np.ones((2, 3)), var=pd.DataFrame(index=[style.format(*region) for region in regions]))
    assert dbio.pp.parse_regions(adata) is None
    assert [tuple(row) for row in adata.var.astype(object).itertuples(index=False)] == regions
    shifted = dbio.pp.parse_regions(adata[:, :1].copy(), one_based=True, copy=True)
    assert shifted.var["start"].tolist() == [9789]
    turned = ad.AnnData(np.ones((3, 2)), obs=pd.DataFrame(index=[style.format(*region) for region in regions]))
    dbio.pp.parse_regions(turned, axis="obs")
    assert turned.obs["end"].tolist() == [10675, 500, 6000]


def test_regions_from_names_may_overlap():
    adata = ad.AnnData(np.ones((2, 3)), var=pd.DataFrame(index=["chr1:1-50", "chr1:20-90", "chr1:95-100"]))
    dbio.pp.parse_regions(adata)
    assert adata.var["start"].tolist() == [1, 20, 95]
    for name, problem in (
        ("chr1:9-5", "ends that do not lie after"),
        ("chr1:1-" + "9" * 30, "must hold whole numbers"),
    ):
        bad = ad.AnnData(np.ones((2, 1)), var=pd.DataFrame(index=[name]))
        with pytest.raises(ValueError, match=problem):
            dbio.pp.parse_regions(bad)
        assert list(bad.var.columns) == []


def test_names_that_are_no_regions():
    adata = ad.AnnData(np.ones((2, 2)), var=pd.DataFrame(index=["chr1:1-5", "GAPDH"]))
    with pytest.raises(ValueError, match=r"1 of 2 that are not, first: \['GAPDH'\]"):
        dbio.pp.parse_regions(adata)
    assert list(adata.var.columns) == []
    with pytest.raises(ValueError, match="axis must be"):
        dbio.pp.parse_regions(adata, axis=1)
