"""Enrichment of states in annotations and around anchors, against loops over bases and bins."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio
from diffbio_sc.genome.intervals import Intervals

STATES = ["low", "high", "never"]


@pytest.fixture
def annotated():
    rng = np.random.default_rng(0)
    parts = []
    for chrom, bins in (("chr2", 60), ("chr1", 45)):
        start = np.arange(bins) * 10
        parts.append(pd.DataFrame({"chrom": chrom, "start": start, "end": np.minimum(start + 10, bins * 10 - 3)}))
    table = pd.concat(parts, ignore_index=True)
    table.index = table.index.map("b{}".format)
    labels = np.repeat(rng.choice(["low", "high"], 30), 4)[: len(table)]
    table["chromatin_state"] = pd.Categorical(labels, categories=STATES)
    # The model's states, among them one that no bin is in.
    return ad.AnnData(np.zeros((len(table), 1)), obs=table, uns={"chromatin_states": {"states": np.array(STATES)}})


REGIONS = pd.DataFrame(
    {"chrom": ["chr1", "chr2", "chr2", "chr2", "chrX"], "start": [13, 400, 100, 150, 5], "end": [90, 447, 160, 230, 9]}
)


def test_folds_are_of_bases(annotated):
    dbio.tl.state_enrichment(annotated, {"r": REGIONS})
    table = dbio.get.state_enrichment(annotated).set_index("state")
    bases = {"low": 0, "high": 0}
    covered = dict(bases)
    for row in annotated.obs.itertuples():
        for base in range(row.start, row.end):
            inside = any(r.chrom == row.chrom and r.start <= base < r.end for r in REGIONS.itertuples())
            bases[row.chromatin_state] += 1
            covered[row.chromatin_state] += inside
    genome = sum(covered.values()) / sum(bases.values())
    for state in bases:
        row = table.loc[state]
        assert (row["state_bases"], row["overlap_bases"]) == (bases[state], covered[state])
        assert row["annotation_bases"] == sum(covered.values())
        assert row["fold"] == pytest.approx(covered[state] / bases[state] / genome, rel=1e-12)
        assert 0 < row["pvalue"] <= 1
    assert np.isnan(table.loc["never", ["fold", "pvalue", "padj"]].astype(float)).all()


def test_order_of_bins_and_axis_do_not_matter(annotated):
    dbio.tl.state_enrichment(annotated, REGIONS, anchors=REGIONS, flank=30)
    shuffled = annotated[np.random.default_rng(1).permutation(len(annotated))].copy()
    dbio.tl.state_enrichment(shuffled, REGIONS, anchors=REGIONS, flank=30)
    turned = ad.AnnData(annotated.X.T, var=annotated.obs, uns=shuffled.uns)
    dbio.tl.state_enrichment(turned, REGIONS, anchors=REGIONS, flank=30)
    for other in (shuffled, turned):
        for kind in ("overlap", "neighborhood"):
            pd.testing.assert_frame_equal(
                dbio.get.state_enrichment(other, kind=kind), dbio.get.state_enrichment(annotated, kind=kind)
            )


def test_annotations_of_all_kinds_are_one(annotated, tmp_path):
    (tmp_path / "r.bed").write_text("".join(f"{r.chrom}\t{r.start}\t{r.end}\n" for r in REGIONS.itertuples()))
    intervals = Intervals.from_arrays(REGIONS["chrom"], REGIONS["start"], REGIONS["end"])
    dbio.tl.state_enrichment(annotated, {"a": REGIONS, "b": str(tmp_path / "r.bed"), "c": intervals})
    table = dbio.get.state_enrichment(annotated).pivot(index="state", columns="annotation", values="pvalue")
    assert table["a"].equals(table["b"])
    assert table["a"].equals(table["c"])
    dbio.tl.state_enrichment(annotated, tmp_path / "r.bed")
    assert dbio.get.state_enrichment(annotated)["annotation"].unique().tolist() == ["r"]


def test_rates_are_adjusted_over_all_tests(annotated):
    from scipy.stats import false_discovery_control

    dbio.tl.state_enrichment(annotated, {"a": REGIONS, "b": REGIONS.iloc[:2]}, null="bins")
    table = dbio.get.state_enrichment(annotated).dropna(subset="pvalue")
    np.testing.assert_allclose(table["padj"], false_discovery_control(table["pvalue"]))
    assert len(table) == 4


def test_neighborhoods_against_a_loop(annotated, tmp_path):
    anchors = pd.DataFrame(
        {
            "chrom": ["chr1", "chr2", "chr2", "chr1", "chr9"],
            "pos": [101, 588, 333, 2, 5],
            "strand": ["+", "-", "-", "+", "+"],
        }
    )
    dbio.tl.state_enrichment(annotated, anchors={"tss": anchors}, flank=45)
    table = dbio.get.state_enrichment(annotated)
    assert table["distance"].unique().tolist() == [-40, -30, -20, -10, 0, 10, 20, 30, 40]
    obs = annotated.obs
    share = (obs["chromatin_state"] == "high").mean()
    for distance, row in table[table["state"] == "high"].set_index("distance").iterrows():
        seen = []
        for anchor in anchors.itertuples():
            way = distance if anchor.strand == "+" else -distance
            place = anchor.pos // 10 * 10 + way
            seen += obs[(obs["chrom"] == anchor.chrom) & (obs["start"] == place)]["chromatin_state"].tolist()
        assert row["bins"] == len(seen)
        assert row["fraction"] == pytest.approx(seen.count("high") / len(seen))
        assert row["fold"] == pytest.approx(seen.count("high") / len(seen) / share)
    path = tmp_path / "tss.txt"
    path.write_text("".join(f"{row.chrom}\t{row.pos}\t{row.strand}\n" for row in anchors.itertuples()))
    dbio.tl.state_enrichment(annotated, anchors=path, flank=45)
    pd.testing.assert_frame_equal(dbio.get.state_enrichment(annotated), table)


def test_five_prime_ends_of_regions_are_anchors(annotated):
    genes = pd.DataFrame({"chrom": "chr2", "start": [100, 300], "end": [200, 401], "strand": ["+", "-"]})
    points = pd.DataFrame({"chrom": "chr2", "pos": [100, 400], "strand": ["+", "-"]})
    dbio.tl.state_enrichment(annotated, anchors={"x": genes}, flank=20)
    first = dbio.get.state_enrichment(annotated)
    dbio.tl.state_enrichment(annotated, anchors={"x": points}, flank=20)
    pd.testing.assert_frame_equal(first, dbio.get.state_enrichment(annotated))


def test_cell_types_are_tested_by_themselves(annotated):
    other = annotated.copy()
    other.obs["chromatin_state"] = annotated.obs["chromatin_state"].to_numpy()[::-1]
    both = ad.concat({"A": annotated, "B": other}, label="cell", index_unique="-", uns_merge="same")
    both.obs["chromatin_state"] = pd.Categorical(both.obs["chromatin_state"], categories=STATES)
    dbio.tl.state_enrichment(both, {"r": REGIONS}, cell_type_key="cell")
    dbio.tl.state_enrichment(other, {"r": REGIONS})
    dbio.tl.state_enrichment(annotated, {"r": REGIONS})
    found = dbio.get.state_enrichment(both)
    for name, single in (("A", annotated), ("B", other)):
        mine = found[found["cell_type"] == name].reset_index(drop=True)
        expected = dbio.get.state_enrichment(single)
        np.testing.assert_allclose(mine["pvalue"], expected["pvalue"])
        np.testing.assert_allclose(mine["fold"], expected["fold"])


def test_bins_without_a_state_are_left_out(annotated):
    partly = annotated.copy()
    partly.obs["chromatin_state"] = partly.obs["chromatin_state"].where(partly.obs["chrom"] == "chr2")
    dbio.tl.state_enrichment(partly, {"r": REGIONS})
    alone = annotated[annotated.obs["chrom"] == "chr2"].copy()
    dbio.tl.state_enrichment(alone, {"r": REGIONS})
    columns = ["state_bases", "annotation_bases", "overlap_bases", "fold"]
    pd.testing.assert_frame_equal(dbio.get.state_enrichment(partly)[columns], dbio.get.state_enrichment(alone)[columns])


def test_single_bins_have_nothing_to_shift(annotated):
    alone = annotated[::2].copy()
    with pytest.warns(UserWarning, match="no shift along the sequences.*null='bins'"):
        dbio.tl.state_enrichment(alone, {"r": REGIONS})
    assert dbio.get.state_enrichment(alone)["pvalue"].isna().all()


def test_bins_of_several_widths_warn_about_distances(annotated):
    annotated.obs.loc["b3", "end"] = 37
    with pytest.warns(UserWarning, match="bins differ in width.*bins of 10 bases"):
        dbio.tl.state_enrichment(annotated, anchors=REGIONS, flank=30)


def bad(**changes):
    return REGIONS.assign(**changes)


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        ({}, ValueError, "annotations, anchors or both, found neither"),
        ({"annotations": {}}, ValueError, "empty mapping"),
        ({"annotations": REGIONS, "null": "x"}, ValueError, "null must be 'shift' or 'bins'"),
        ({"annotations": REGIONS, "flank": -5}, ValueError, "flank must be"),
        ({"annotations": REGIONS, "column": "x"}, KeyError, "no column 'x'.*tl.chromatin_states"),
        ({"annotations": REGIONS, "key": "x"}, KeyError, "no column 'x_chromatin_state'"),
        ({"annotations": {"r": REGIONS.drop(columns="end")}}, KeyError, r"'r' has no columns \['end'\]"),
        ({"annotations": {"r": REGIONS.iloc[:0]}}, ValueError, "'r' has no regions"),
        ({"annotations": {"r": bad(end=3)}}, ValueError, "'r' must hold intervals"),
        ({"annotations": {"r": bad(start=-1)}}, ValueError, "'r' must hold intervals.*negative starts"),
        ({"annotations": {"r": bad(start="x")}}, ValueError, "'r' must hold intervals"),
        ({"annotations": {"r": bad(chrom="1")}}, ValueError, "no chromosome in common.*prefix 'chr'"),
        ({"annotations": {"r": 7}}, TypeError, "'r' must be a table, a BED file or intervals"),
        ({"annotations": "none.bed"}, FileNotFoundError, "none.bed"),
        ({"anchors": bad(start=10_000, end=10_001)}, ValueError, "no anchor of 'anchors' lies in a bin"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(annotated, arguments, error, problem):
    with pytest.raises(error, match=problem):
        dbio.tl.state_enrichment(annotated, **arguments)
    assert list(annotated.uns) == ["chromatin_states"]


def test_tables_that_are_not_there(annotated):
    with pytest.raises(KeyError, match="no enrichment 'state_enrichment'"):
        dbio.get.state_enrichment(annotated)
    dbio.tl.state_enrichment(annotated, REGIONS)
    with pytest.raises(KeyError, match="no 'neighborhood', only \\['overlap'\\]: pass anchors"):
        dbio.get.state_enrichment(annotated, kind="neighborhood")
    with pytest.raises(ValueError, match="kind must be 'overlap', 'neighborhood' or None"):
        dbio.get.state_enrichment(annotated, kind="x")


def test_results_are_stored_and_copies_leave_the_object(annotated, tmp_path):
    found = dbio.tl.state_enrichment(annotated, REGIONS, anchors=REGIONS, copy=True)
    assert list(annotated.uns) == ["chromatin_states"]
    found.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert dbio.get.state_enrichment(again)["pvalue"].equals(dbio.get.state_enrichment(found)["pvalue"])
    found.write_zarr(tmp_path / "a.zarr")


@pytest.mark.data
def test_promoters_lie_in_cpg_islands_and_at_starts_of_genes(data_folder):
    folder = data_folder / "chromatin_states"
    adata = dbio.io.read_chromhmm_binary(
        folder / "GM12878_chr11_binary.txt.gz", chrom_sizes=folder / "annot" / "chromsizes.hg18.txt"
    )
    marks = adata.to_df().astype(bool)
    adata.obs["chromatin_state"] = pd.Categorical(
        np.select([marks["H3K4me3"], marks["H3K36me3"]], ["promoter", "transcribed"], "rest")
    )
    annotations = {
        "cpg": folder / "annot" / "CpGIsland.hg18.bed.gz",
        "lad": folder / "annot" / "laminB1lads.hg18.bed.gz",
    }
    dbio.tl.state_enrichment(adata, annotations, anchors={"tss": folder / "annot" / "RefSeqTSS.hg18.txt.gz"})
    folds = dbio.get.state_enrichment(adata).pivot(index="state", columns="annotation", values="fold")
    assert folds.loc["promoter", "cpg"] > 10
    assert folds.loc["transcribed", "lad"] < 0.3
    profile = dbio.get.state_enrichment(adata, kind="neighborhood")
    promoter = profile[profile["state"] == "promoter"].set_index("distance")["fold"]
    # The nucleosome after the start, downstream, carries most; far upstream there is little.
    assert promoter.idxmax() in (200, 400, 600)
    assert promoter[200] > 3 * promoter[-2000]


def test_places_of_any_kind_of_number_are_taken():
    adata = dbio.datasets.simulate_chromatin_states(n_bins=400)
    places = adata.obs[["chrom", "start", "end"]].iloc[:90].reset_index(drop=True)
    tables = []
    for kind in (np.int64, np.float64, np.uint32, str):
        dbio.tl.state_enrichment(adata, {"first": places.astype({"start": kind, "end": kind})}, column="truth")
        tables.append(dbio.get.state_enrichment(adata))
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    with pytest.raises(ValueError, match="column 'start' must be whole numbers"):
        dbio.tl.state_enrichment(adata, {"first": places.assign(start=places["start"] + 0.5)}, column="truth")
