"""Saddle, pile-up and coverage of contact maps, against cooltools and closed forms."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio


@pytest.fixture(scope="module")
def balanced():
    adata = dbio.datasets.simulate_contacts(500, contacts_per_bin=3000, n_loops=12, rng=1)
    dbio.tl.balance(adata)
    dbio.tl.expected(adata)
    # Values of an eigenvector have no ties.
    noise = 0.02 * np.random.default_rng(0).normal(size=adata.n_obs)
    adata.obs["compartment"] = np.where(adata.obs["contact_bad_bin"], np.nan, adata.obs["true_compartment"] + noise)
    return adata


def test_saddle_of_planted_compartments():
    adata = dbio.datasets.simulate_contacts(1500, contacts_per_bin=3000, n_loops=0, rng=2)
    dbio.tl.balance(adata)
    noise = 0.02 * np.random.default_rng(0).normal(size=adata.n_obs)
    adata.obs["compartment"] = adata.obs["true_compartment"] + noise
    dbio.tl.saddle(adata, n_classes=10, tails=0.0, min_distance=1_000_000)
    record = adata.uns["saddle"]
    mean = record["mean"]
    np.testing.assert_allclose(mean, mean.T)
    assert record["strength"][1] == record["report"]["strength"]
    assert record["strength"][0] > record["strength"][-1] > 1.1
    # Planted log ratios are kappa x x'; weights and decay, products of both bins, cancel from this one.
    good = adata.obs[~adata.obs["contact_bad_bin"]]["compartment"]
    x = good.groupby(pd.qcut(good, 10, labels=False)).mean()
    found = np.log(mean[0, 0] * mean[-1, -1] / mean[0, -1] ** 2)
    assert found == pytest.approx(0.45 * (x[9] - x[0]) ** 2, rel=0.1)


def test_saddle_equals_cooltools(balanced, tmp_path):
    """The same classes and decay: the sums of cooltools."""
    cooler, cooltools = pytest.importorskip("cooler"), pytest.importorskip("cooltools")
    adata = balanced.copy()
    dbio.tl.saddle(adata, n_classes=8, tails=0.05, min_distance=20_000)
    record = adata.uns["saddle"]
    dbio.io.write_cool(adata, tmp_path / "map.cool")
    source = cooler.Cooler(str(tmp_path / "map.cool"))
    view = pd.DataFrame({"chrom": ["chr1"], "start": [0], "end": [5_000_000], "name": ["chr1"]})
    table = dbio.get.expected(adata)
    expected = pd.DataFrame(
        {
            "region1": "chr1",
            "region2": "chr1",
            "dist": table["dist"],
            "n_valid": table["n_valid"],
            "balanced.avg": table["smoothed"],
        }
    )
    track = adata.obs[["chrom", "start", "end", "compartment"]].astype({"chrom": str}).reset_index(drop=True)
    sums, pairs = cooltools.saddle(source, expected, track, "cis", 8, qrange=(0.05, 0.95), view_df=view, min_diag=2)
    theirs = sums[1:-1, 1:-1] / pairs[1:-1, 1:-1]
    np.testing.assert_allclose(record["mean"], theirs, rtol=1e-3)


def test_pileup_of_loops(balanced):
    adata = balanced.copy()
    truth = adata.uns["truth"]["loops"]
    dbio.tl.pileup(adata, truth, flank=80_000)
    record = adata.uns["pileup"]
    mean = record["mean"]
    assert mean.shape == (17, 17)
    assert np.unravel_index(np.argmax(mean), mean.shape) == (8, 8)
    assert mean[8, 8] == pytest.approx(truth["enrichment"].mean(), rel=0.4)
    assert record["report"]["enrichment"] > 1.5
    assert record["params"]["n_features"] == len(truth)
    # Pairs in the other order are the same windows.
    turned = truth.rename(
        columns={f"{name}{one}": f"{name}{two}" for name in ("chrom", "start", "end") for one, two in ("12", "21")}
    )
    dbio.tl.pileup(adata, turned, flank=80_000, key_added="turned")
    np.testing.assert_allclose(adata.uns["turned"]["mean"], mean)


def test_pileup_of_boundaries(balanced):
    adata = balanced.copy()
    adata.obs["is_boundary"] = adata.obs["true_boundary"]
    dbio.tl.pileup(adata, "is_boundary", flank=150_000)
    record = adata.uns["pileup"]
    mean = record["mean"]
    np.testing.assert_allclose(mean, mean.T)
    assert record["report"]["enrichment"] > 1.25
    table = adata.obs.loc[adata.obs["is_boundary"], ["chrom", "start"]]
    dbio.tl.pileup(adata, table, flank=150_000, key_added="table")
    np.testing.assert_allclose(adata.uns["table"]["mean"], mean)


def test_pileup_of_nothing_in_particular_is_one():
    """Without structure observed is expected."""
    adata = dbio.datasets.simulate_contacts(
        400, contacts_per_bin=2000, compartment_strength=0.0, n_loops=0, n_stripes=0, overdispersion=0.0, rng=3
    )
    dbio.tl.balance(adata)
    start = np.arange(0, 300) * 10_000  # all pairs of bins at this distance
    pairs = pd.DataFrame({"chrom1": "chr1", "start1": start, "end1": start + 10_000})
    for name in ("chrom", "start", "end"):
        pairs[f"{name}2"] = pairs[f"{name}1"] + (1_000_000 if name != "chrom" else "")
    dbio.tl.pileup(adata, pairs, flank=50_000)
    mean = adata.uns["pileup"]["mean"]
    assert mean.mean() == pytest.approx(1.0, abs=0.01)
    assert mean.std() < 0.06  # of counting, some 250 contacts a pixel


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ("nothing", KeyError, "neither a key of adata.uns"),
        (pd.DataFrame({"chrom1": ["chr1"], "start1": [0]}), KeyError, "lack the columns"),
        (pd.DataFrame({"chrom": ["chr7"], "start": [0]}), ValueError, "none of the 1 features"),
        (pd.DataFrame({"chrom": ["chr1"]}), KeyError, "start"),
        (pd.DataFrame({"chrom": [], "start": []}), ValueError, "empty"),
        ([1, 2], TypeError, "must be a table"),
    ],
)
def test_pileup_refuses(balanced, features, error, message):
    adata = balanced.copy()
    with pytest.raises(error, match=message):
        dbio.tl.pileup(adata, features)
    assert "pileup" not in adata.uns


def test_saddle_refuses(balanced):
    adata = balanced.copy()
    with pytest.raises(KeyError, match=r"run dbio.tl.compartments\(adata\) first"):
        dbio.tl.saddle(adata, compartment_key="pc1")
    with pytest.raises(ValueError, match="fewer than 5000 classes"):
        dbio.tl.saddle(adata, n_classes=5000)
    with pytest.raises(ValueError, match="tails"):
        dbio.tl.saddle(adata, tails=0.5)
    del adata.obs["contact_weight"]
    with pytest.raises(KeyError, match="dbio.tl.balance"):
        dbio.tl.saddle(adata)
    with pytest.raises(KeyError, match="dbio.tl.balance"):
        dbio.tl.pileup(adata, adata.uns["truth"]["loops"])


def test_coverage_of_a_small_map():
    adata = dbio.datasets.simulate_contacts((40, 50), contacts_per_bin=60, trans_share=0.3)
    dbio.tl.coverage_stats(adata, ignore_diags=1)
    counts = adata.obsp["contacts"].toarray().astype(int)
    chrom = adata.obs["chrom"].to_numpy()
    cis = chrom[:, None] == chrom[None]
    np.fill_diagonal(counts, 0)
    np.testing.assert_array_equal(adata.obs["coverage_cis"], (counts * cis).sum(1))
    np.testing.assert_array_equal(adata.obs["coverage_trans"], (counts * ~cis).sum(1))
    summary = adata.uns["coverage_stats"]["summary"]
    upper = sp.triu(adata.obsp["contacts"]).toarray()
    assert summary["n_contacts"] == upper.sum()
    assert summary["trans_share"] == pytest.approx(upper[~cis].sum() / upper.sum())
    far = np.abs(np.subtract.outer(np.arange(90), np.arange(90))) >= 2
    assert summary["far_share"] == pytest.approx(upper[cis & far].sum() / upper[cis].sum())
    assert summary["diagonal_share"] == pytest.approx(np.trace(upper) / upper[cis].sum())
    assert summary["resolved_share"] == 0.0
    dbio.tl.coverage_stats(adata, key_added="other")
    assert "other_coverage_cis" in adata.obs


def test_coverage_of_an_empty_map():
    adata = dbio.datasets.simulate_contacts(40, contacts_per_bin=10)
    adata.obsp["contacts"] = sp.csr_array((40, 40), dtype=np.int32)
    dbio.tl.coverage_stats(adata)
    assert adata.uns["coverage_stats"]["summary"]["n_contacts"] == 0
    assert np.isnan(adata.uns["coverage_stats"]["summary"]["trans_share"])


def test_saddle_of_labels_has_no_empty_classes(balanced):
    adata = balanced.copy()
    adata.obs["compartment"] = np.sign(adata.obs["compartment"])
    dbio.tl.saddle(adata, n_classes=10)
    assert np.isfinite(adata.uns["saddle"]["mean"]).all()
    assert adata.uns["saddle"]["report"]["strength"] > 1.05


def coarser(adata: ad.AnnData, factor: int) -> ad.AnnData:
    """The same contacts in wider bins."""
    size = -(-adata.n_obs // factor)
    join = sp.csr_array(
        (np.ones(adata.n_obs), (np.arange(adata.n_obs) // factor, np.arange(adata.n_obs))), shape=(size, adata.n_obs)
    )
    upper = sp.triu(join @ sp.triu(adata.obsp["contacts"]) @ join.T)
    obs = adata.obs.iloc[::factor][["chrom", "start"]].copy()
    obs["end"] = obs["start"] + factor * 10_000
    return ad.AnnData(obs=obs, obsp={"contacts": sp.csr_matrix((upper + sp.triu(upper, 1).T).astype(np.int32))})


@pytest.mark.filterwarnings("ignore:without phasing_track")
def test_loops_of_two_resolutions_are_one_list(balanced, tmp_path):
    fine = balanced.copy()
    coarse = coarser(fine, 2)
    for each in (fine, coarse):
        dbio.tl.balance(each)
        dbio.tl.loops(each)
    dbio.tl.merge_loops(fine, [coarse])
    table = dbio.get.loops(fine, key="merged_loops")
    own, other = fine.uns["loops"]["table"], coarse.uns["loops"]["table"]
    assert len(own) >= 6
    assert len(other) >= 3
    # All fine loops remain as they were; coarse ones are there where no fine one lies within 40 kb.
    assert (table["resolution"] == 10_000).sum() == len(own)
    assert set(table.loc[table["resolution"] == 10_000, "start1"]) == set(own["start1"])
    middle = [((t["start1"] + t["end1"]) / 2, (t["start2"] + t["end2"]) / 2) for t in (own, other)]
    apart = np.maximum(*(np.abs(a.to_numpy()[:, None] - b.to_numpy()[None]) for a, b in zip(*middle, strict=True)))
    assert (table["resolution"] == 20_000).sum() == (apart.min(0) > 40_000).sum()
    assert (table["n_resolutions"] == 2).any()
    assert (np.diff(table["qval"]) >= 0).all()
    fine.write_h5ad(tmp_path / "merged.h5ad")
    pd.testing.assert_frame_equal(
        ad.read_h5ad(tmp_path / "merged.h5ad").uns["merged_loops"]["table"],
        fine.uns["merged_loops"]["table"],
        check_dtype=False,
        check_index_type=False,
    )
    # One list may be empty.
    coarse.uns["loops"]["table"] = other.iloc[:0]
    alone = dbio.tl.merge_loops(fine, [coarse], copy=True).uns["merged_loops"]["table"]
    assert len(alone) == len(own)
    assert (alone["n_resolutions"] == 1).all()


def test_merge_refuses(balanced):
    with pytest.raises(KeyError, match=r"dbio\.tl\.loops"):
        dbio.tl.merge_loops(balanced, [balanced])
    adata = balanced.copy()
    dbio.tl.loops(adata)
    with pytest.raises(ValueError, match="different widths"):
        dbio.tl.merge_loops(adata, [adata])
    with pytest.raises(ValueError, match="empty"):
        dbio.tl.merge_loops(adata, [])
    with pytest.raises(TypeError, match="list"):
        dbio.tl.merge_loops(adata, adata)
    with pytest.raises(ValueError, match="radius"):
        dbio.tl.merge_loops(adata, [adata], radius=0)
    assert "merged_loops" not in adata.uns


def test_trans_saddle_of_planted_compartments():
    rng = np.random.default_rng(6)
    side = np.where((np.arange(240) // 15) % 2 == 0, 1.0, -1.0)
    chrom = np.repeat([0, 1, 2], 80)
    mean = np.where(chrom[:, None] == chrom, 5.0, 3.0 * np.exp(0.5 * np.outer(side, side)))
    upper = np.triu(rng.poisson(mean))
    obs = pd.DataFrame({"chrom": np.array(["chr1", "chr2", "chr3"])[chrom], "start": np.tile(np.arange(80), 3) * 1000})
    obs["end"] = obs["start"] + 1000
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(obs=obs, obsp={"contacts": sp.csr_matrix(upper + np.triu(upper, 1).T)})
    dbio.tl.balance(adata, contact="trans")
    adata.obs["compartment"] = side + 0.01 * rng.normal(size=240)
    dbio.tl.saddle(adata, contact="trans", n_classes=2, tails=0.0)
    found = adata.uns["saddle"]["mean"]
    assert found[0, 0] * found[1, 1] / found[0, 1] ** 2 == pytest.approx(np.exp(2.0), rel=0.05)
    assert adata.uns["saddle"]["strength"][0] == pytest.approx(np.exp(1.0), rel=0.05)
    assert adata.uns["saddle"]["params"]["contact"] == "trans"
    with pytest.raises(ValueError, match="'cis' or 'trans'"):
        dbio.tl.saddle(adata, contact="all")
    with pytest.raises(ValueError, match="two chromosomes"):
        dbio.tl.saddle(adata[:80].copy(), contact="trans", n_classes=2)
