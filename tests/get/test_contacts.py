"""Tables of contact maps against what was written."""

import numpy as np
import pytest

import diffbio_sc as dbio


@pytest.fixture(scope="module")
def adata():
    adata = dbio.datasets.simulate_contacts((300, 150), contacts_per_bin=800, rng=3)
    dbio.tl.contacts(adata, phasing_track="gc")
    return adata


def test_matrices_of_a_region(adata):
    counts = dbio.get.contacts(adata, "chr2:100,000-350,000", values="counts")
    assert counts.shape == (25, 25)
    place = adata.obs_names.get_indexer(counts.index)
    np.testing.assert_array_equal(counts, adata.obsp["contacts"].toarray()[np.ix_(place, place)])
    assert (adata.obs["chrom"].iloc[place] == "chr2").all()
    balanced = dbio.get.contacts(adata, ("chr2", 100_000, 350_000))
    weight = adata.obs["contact_weight"].to_numpy()[place]
    np.testing.assert_allclose(balanced, counts * np.outer(weight, weight))
    oe, expected = (dbio.get.contacts(adata, "chr2:100,000-350,000", values=values) for values in ("oe", "expected"))
    np.testing.assert_allclose(oe * expected, balanced.where(expected.notna()))
    table = adata.uns["expected"]["table"]
    decay = table.loc[table["region"] == "chr2", "smoothed"].to_numpy()
    np.testing.assert_allclose(np.nanmax(expected.to_numpy(), 1)[0], decay[2], rtol=1e-6)
    assert expected.to_numpy()[0, 10] == pytest.approx(decay[10], rel=1e-6) or np.isnan(weight[[0, 10]]).any()
    assert dbio.get.contacts(adata, "chr1").shape == (300, 300)
    assert dbio.get.contacts(adata).shape == (300, 300)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("chr9:1-20", "no chromosome 'chr9'"),
        ("chr1", None),
        ("nonsense", "must be a chromosome"),
        ("chr1:20-10", "start < end"),
        ("chr1:90,000,000-91,000,000", "no bins in"),
        (("chr1", 5), "text or"),
    ],
)
def test_regions_are_checked(adata, region, message):
    if message is None:
        assert len(dbio.get.contacts(adata, region)) == 300
        return
    with pytest.raises(ValueError, match=message):
        dbio.get.contacts(adata, region)


def test_decay(adata):
    whole = dbio.get.expected(adata)
    assert set(whole["region"]) == {"chr1", "chr2"}
    one = dbio.get.expected(adata, region="chr2")
    assert len(one) == 150
    pooled = dbio.get.expected(adata, per_decade=5, region="chr1")
    known = whole[(whole["region"] == "chr1") & whole["balanced.avg"].notna() & (whole["dist"] > 0)]
    assert pooled["n_valid"].sum() == known["n_valid"].sum()
    total = (known["balanced.avg"] * known["n_valid"]).sum()
    assert (pooled["balanced.avg"] * pooled["n_valid"]).sum() == pytest.approx(total)
    # The decay planted falls with distance^-0.75 and more beyond 2 Mb; domains and compartments bend it.
    middle = pooled["dist_bp"].between(5e4, 1e6)
    assert pooled.loc[middle, "slope"].mean() == pytest.approx(-0.9, abs=0.25)
    with pytest.raises(KeyError, match="no region 'chrX'"):
        dbio.get.expected(adata, region="chrX")


def test_runs_of_compartments(adata):
    bins, runs = dbio.get.compartments(adata), dbio.get.compartments(adata, domains=True)
    assert runs["n_bins"].sum() == (bins["compartment"].notna() & (bins["compartment"] != 0)).sum()
    for row in runs.itertuples():
        mine = bins[(bins["chrom"] == row.chrom) & (bins["start"] >= row.start) & (bins["end"] <= row.end)]
        assert len(mine) == row.n_bins
        assert (np.sign(mine["compartment"]) == row.sign).all()
        assert mine["compartment"].mean() == pytest.approx(row.mean)


def test_insulation_and_domains(adata):
    table = dbio.get.insulation(adata)
    boundaries = dbio.get.insulation(adata, boundaries=True)
    assert list(table.index) == list(adata.obs_names)
    assert len(boundaries) == adata.obs["is_boundary"].sum() > 3
    window = [name for name in table if name.startswith("insulation_")]
    assert len(window) == adata.obsm["insulation"].shape[1]
    domains = dbio.get.tads(adata)
    np.testing.assert_array_equal(domains["length"], domains["end"] - domains["start"])
    assert len(dbio.get.tads(adata, chrom="chr2")) < len(domains)
    inner = domains[domains["score_start"].notna()]
    assert set(zip(inner["chrom"], inner["start"], strict=True)) <= set(
        zip(boundaries["chrom"].astype(str), boundaries["start"], strict=True)
    )


def test_loops(adata):
    table = dbio.get.loops(adata)
    assert len(table) > 2
    np.testing.assert_array_equal(table["distance"], table["start2"] - table["start1"])
    strict = dbio.get.loops(adata, max_qvalue=1e-6, min_enrichment=2.0)
    assert (strict["qval"] <= 1e-6).all()
    assert (strict["enrichment"] >= 2.0).all()
    assert len(strict) < len(table)
    assert (dbio.get.loops(adata, chrom="chr2")["chrom1"] == "chr2").all()
    with pytest.raises(ValueError, match="max_qvalue"):
        dbio.get.loops(adata, max_qvalue=2.0)


def test_missing_results_say_what_to_run():
    adata = dbio.datasets.simulate_contacts(60, contacts_per_bin=20)
    for function, maker in (
        (dbio.get.expected, "expected"),
        (dbio.get.compartments, "compartments"),
        (dbio.get.insulation, "insulation"),
        (dbio.get.tads, "insulation"),
        (dbio.get.loops, "loops"),
        (dbio.get.differential_contacts, "differential_contacts"),
    ):
        with pytest.raises(KeyError, match=f"dbio.tl.{maker}"):
            function(adata)
    with pytest.raises(KeyError, match="dbio.tl.balance"):
        dbio.get.contacts(adata)
    with pytest.raises(TypeError, match="must be an AnnData"):
        dbio.get.loops("adata")


def test_summits_of_runs():
    import pandas as pd

    adata = dbio.datasets.simulate_contacts(60, contacts_per_bin=20)
    start = np.array([0, 10, 20, 50, 60, 70]) * 1000
    table = pd.DataFrame(
        {
            "chrom": "chr1",
            "start": start,
            "end": start + 10_000,
            "mean_1": 1.0,
            "mean_2": 2.0,
            "log2_fold_change": [1.0, 2.0, 1.0, 1.0, -1.0, -2.0],
            "pval": [0.01, 0.001, 0.02, 0.03, 0.002, 0.004],
            "qval": 0.01,
        }
    )
    adata.uns["differential_contacts"] = {"boundaries": table, "params": {"groups": ["wild type", "mutant"]}}
    found = dbio.get.differential_contacts(adata, "boundaries", summits=True)
    assert list(found["start"]) == [10_000, 60_000, 50_000]
    assert list(found["run_start"]) == [0, 60_000, 50_000]
    assert list(found["run_end"]) == [30_000, 80_000, 60_000]
    assert {"mean_wild type", "mean_mutant"} <= set(found)
    with pytest.raises(KeyError, match=r"no 'loops'; it has \['boundaries'\]"):
        dbio.get.differential_contacts(adata, "loops")
