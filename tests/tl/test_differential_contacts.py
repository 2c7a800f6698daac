"""Differences between groups of contact maps: calibrated, found where planted, refused where nothing can be said."""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from no_warnings import no_warnings

import diffbio_sc as dbio

DATA = Path(os.environ.get("DIFFBIO_SC_DATA", "missing")) / "hic"
GROUPS = {"a": ["contacts_a_1", "contacts_a_2"], "b": ["contacts_b_1", "contacts_b_2"]}


def with_compartments(adata):
    adata.obs["compartment"] = np.where(adata.obs["true_masked"], np.nan, adata.obs["true_compartment"])
    return adata


@pytest.fixture(scope="module")
def changed():
    adata = with_compartments(dbio.datasets.simulate_contacts(1500, n_replicates=2, n_conditions=2, rng=2))
    dbio.tl.differential_contacts(adata, groups=GROUPS, loops=adata.uns["truth"]["loops"])
    return adata


@pytest.fixture(scope="module")
def null():
    adata = with_compartments(dbio.datasets.simulate_contacts(1500, n_replicates=4, rng=1))
    keys = [f"contacts_a_{k}" for k in range(1, 5)]
    dbio.tl.differential_contacts(adata, groups={"x": keys[:2], "y": keys[2:]}, loops=adata.uns["truth"]["loops"])
    return adata


@pytest.mark.parametrize("kind", ["loops", "boundaries", "compartments", "interactions"])
def test_replicates_against_replicates_do_not_differ(null, kind):
    table = null.uns["differential_contacts"][kind]
    tested = table["pval"].notna()
    # A share of a few loops is known to a few of them: three standard errors.
    room = 3 * np.sqrt(0.05 * 0.95 / tested.sum())
    assert (table["pval"] < 0.05).sum() / tested.sum() <= 0.05 + max(room, 0.01)
    assert (table["qval"] < 0.05).sum() / tested.sum() <= 0.01


def test_changed_loops_are_found(changed):
    truth = changed.uns["truth"]["loops"]
    table = dbio.get.differential_contacts(changed, "loops")
    joined = truth.merge(table, on=["chrom1", "start1", "start2"], suffixes=("_true", ""))
    planted = joined["changed"].to_numpy()
    significant = (joined["qval"] < 0.05).to_numpy()
    assert significant[planted].mean() >= 0.6
    unchanged = joined["log2_fold_change_true"].abs() < 0.1
    assert significant[unchanged].sum() <= 1
    hits = significant & planted
    assert (np.sign(joined["log2_fold_change"]) == np.sign(joined["log2_fold_change_true"]))[hits].all()
    # The square about a loop holds its flanks too, so that the change is that of its centre or less.
    ratio = joined["log2_fold_change"][hits] / joined["log2_fold_change_true"][hits]
    assert 0.4 < np.median(ratio) <= 1.1
    # What surrounds a loop does not change with it.
    assert joined["ring_log2_fold_change"][hits].abs().median() < 0.2


def test_moved_boundaries_are_found(changed):
    truth = changed.uns["truth"]["boundaries"]
    table = dbio.get.differential_contacts(changed, "boundaries", max_qvalue=0.05, summits=True)
    for change, sign in (("lost", -1), ("gained", 1)):
        mine = table.loc[np.sign(table["log2_fold_change"]) == sign, "start"].to_numpy()
        planted = truth.loc[truth["change"] == change, "start"].to_numpy()
        assert len(planted) > 2
        found = [np.abs(mine - start).min() <= 30_000 for start in planted]
        assert np.mean(found) >= 0.6
    columns = changed.obs["boundary_change_qval"] < 0.05
    assert columns.sum() == (changed.uns["differential_contacts"]["boundaries"]["qval"] < 0.05).sum()
    steady = truth.loc[truth["change"] == "same", "start"] // 10_000
    near_moved = np.abs(
        steady.to_numpy()[:, None] - truth.loc[truth["change"] != "same", "start"].to_numpy()[None] // 10_000
    ).min(1)
    assert columns.to_numpy()[steady[near_moved > 20]].mean() <= 0.1


def test_flipped_compartments_are_found(changed):
    shift = (changed.obs["true_compartment_b"] - changed.obs["true_compartment"]).to_numpy()
    change = changed.obs["compartment_change"].to_numpy()
    qvalue = changed.obs["compartment_change_qval"].to_numpy()
    flipped = (np.abs(shift) > 0.8) & np.isfinite(change)
    assert flipped.sum() > 30
    assert (qvalue[flipped] < 0.05).mean() >= 0.8
    assert (np.sign(change[flipped]) == np.sign(shift[flipped])).mean() > 0.98
    steady = (np.abs(shift) < 0.01) & np.isfinite(change)
    assert (qvalue[steady] < 0.05).mean() <= 0.05


def test_interactions_across_a_moved_boundary_change(changed):
    table = dbio.get.differential_contacts(changed, "interactions", max_qvalue=0.01)
    assert len(table) > 20
    assert (table["start2"] > table["start1"]).all()
    assert (table["end1"] - table["start1"]).max() == 100_000
    fold = np.log2(table["mean_b"] / table["mean_a"])
    np.testing.assert_allclose(fold, table["log2_fold_change"], atol=0.15)


def test_depth_decay_and_visibility_are_no_difference():
    """The second group is another depth, a steeper decay, and other visibilities, and nothing else."""
    rng = np.random.default_rng(0)
    adata = dbio.datasets.simulate_contacts(800, n_replicates=4, contacts_per_bin=2000, n_loops=30, replicate_sd=0.01)
    distance = np.arange(800)
    visibility = rng.uniform(0.3, 1.0, 800)
    keep = 0.9 * ((distance + 1) / 1.0) ** -0.1
    for key in ("contacts_a_3", "contacts_a_4"):
        upper = sp.triu(adata.obsp[key]).tocoo()
        chance = keep[upper.col - upper.row] * visibility[upper.row] * visibility[upper.col]
        thinned = sp.csr_array(sp.coo_array((rng.binomial(upper.data, chance), (upper.row, upper.col)), (800, 800)))
        thinned.eliminate_zeros()
        adata.obsp[key] = thinned.astype(np.int32)  # one triangle, beside maps of both
    dbio.tl.differential_contacts(
        adata,
        groups={"x": ["contacts_a_1", "contacts_a_2"], "y": ["contacts_a_3", "contacts_a_4"]},
        features=["loops", "boundaries", "interactions"],
        loops=adata.uns["truth"]["loops"],
    )
    for kind in ("loops", "boundaries", "interactions"):
        table = adata.uns["differential_contacts"][kind]
        assert (table["qval"] < 0.05).sum() <= max(0.01 * len(table), 1), kind
        assert abs(table["log2_fold_change"].median()) < 0.05
    decay = dbio.get.differential_contacts(adata, "decay")
    # Contacts are kept by distance^-0.1: the share of far contacts falls with it.
    slope = np.polyfit(np.log2(decay["start"] + decay["end"]), decay["log2_fold_change"], 1)[0]
    assert slope == pytest.approx(-0.1, abs=0.03)


def test_one_replicate_a_side_is_wider_and_says_so(changed):
    adata = changed.copy()
    truth = adata.uns["truth"]["loops"]
    with pytest.warns(UserWarning, match="one replicate.*too wide"):
        dbio.tl.differential_contacts(
            adata,
            groups={"a": ["contacts_a_1"], "b": ["contacts_b_1"]},
            features=["loops"],
            loops=truth,
            key_added="one",
        )
    assert not adata.uns["one"]["report"]["replicated"]
    assert adata.uns["one"]["variance"]["residual_df"].tolist() == [0]
    two, one = (adata.uns[key]["loops"] for key in ("differential_contacts", "one"))
    # Twice the counts alone would give a factor of 1.4.
    assert np.nanmedian(one["standard_error"] / two["standard_error"]) > 1.6
    assert (one["qval"] < 0.05).sum() <= (two["qval"] < 0.05).sum()
    with no_warnings():
        dbio.tl.differential_contacts(
            adata,
            groups={"a": ["contacts_a_1"], "b": ["contacts_b_1"]},
            features="loops",
            loops=truth,
            dispersion=0.005,
            key_added="known",
        )
    known = adata.uns["known"]["loops"]
    planted = truth["changed"].to_numpy()
    assert (known["qval"] < 0.05).to_numpy()[planted].mean() >= 0.5
    assert (known["qval"] < 0.05).to_numpy()[truth["log2_fold_change"].abs() < 0.1].sum() <= 1


def test_sign_turns_with_the_groups(changed):
    adata = changed.copy()
    turned = {"b": GROUPS["b"], "a": GROUPS["a"]}
    dbio.tl.differential_contacts(adata, groups=turned, loops=adata.uns["truth"]["loops"], key_added="turned")
    for kind in ("loops", "boundaries", "compartments", "interactions"):
        one, two = adata.uns["differential_contacts"][kind], adata.uns["turned"][kind]
        np.testing.assert_allclose(one["log2_fold_change"], -two["log2_fold_change"], atol=2e-3)
    assert "turned_boundary_change" in adata.obs


def test_several_chromosomes_and_shuffled_bins():
    """Neither the order of the bins nor that of the loops matters."""
    adata = with_compartments(
        dbio.datasets.simulate_contacts((260, 200), n_replicates=2, n_conditions=2, contacts_per_bin=500, rng=4)
    )
    loops = adata.uns["truth"]["loops"].sample(frac=1.0, random_state=0)
    rng = np.random.default_rng(0)
    order = rng.permutation(adata.n_obs)
    shuffled = adata[order].copy()
    for each in (adata, shuffled):
        dbio.tl.differential_contacts(each, groups=GROUPS, loops=loops)
    one, two = (dbio.get.differential_contacts(each, "loops") for each in (adata, shuffled))
    assert set(one["chrom1"]) == {"chr1", "chr2"}
    keys = ["chrom1", "start1", "start2"]
    one, two = (each.sort_values(keys).reset_index(drop=True) for each in (one, two))
    np.testing.assert_array_equal(one["start1"], two["start1"])
    np.testing.assert_allclose(one["mean_a"], two["mean_a"], rtol=1e-4)
    np.testing.assert_allclose(
        adata.obs["boundary_change"].to_numpy()[order], shuffled.obs["boundary_change"].to_numpy(), atol=1e-4
    )


def test_empty_and_tiny_chromosomes_are_passed_over():
    """One chromosome without contacts in any map, one without in one map, one of a single bin."""
    full = dbio.datasets.simulate_contacts({"chr1": 200, "chr2": 60, "chr3": 60}, n_replicates=2, n_conditions=2)
    rows = full.obs[["chrom", "start", "end"]].astype({"chrom": str})
    rows.loc["chrM:0-10000"] = ["chrM", 0, 10_000]
    adata = ad.AnnData(sp.csr_array((321, 0), dtype=np.float32), obs=rows)
    for key in [*GROUPS["a"], *GROUPS["b"]]:
        counts = full.obsp[key].tocoo()
        kept = (counts.row < 260) & ((counts.row < 200) | (key != "contacts_b_2"))
        pair = (counts.row[kept], counts.col[kept])
        adata.obsp[key] = sp.csr_array(sp.coo_array((counts.data[kept], pair), shape=(321, 321)))
    with no_warnings():
        dbio.tl.differential_contacts(adata, groups=GROUPS, features=["boundaries", "interactions"])
    table = adata.uns["differential_contacts"]["boundaries"]
    assert table.loc[table["chrom"] == "chr1", "pval"].notna().mean() > 0.95
    assert table.loc[table["chrom"].isin(["chr3", "chrM"]), "pval"].isna().all()
    assert adata.obs["boundary_change"][-1:].isna().all()


def test_bins_along_var():
    adata = dbio.datasets.simulate_contacts(150, n_replicates=2, n_conditions=2, contacts_per_bin=300)
    turned = adata.T.copy()
    for each in (adata, turned):
        dbio.tl.differential_contacts(each, groups=GROUPS, features="boundaries")
    np.testing.assert_array_equal(turned.var["boundary_change"], adata.obs["boundary_change"])


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_results_survive_files(changed, tmp_path, memory_store, suffix):
    path = tmp_path / "map.h5ad" if suffix == "h5ad" else memory_store()
    getattr(changed, f"write_{suffix}")(path)
    back = getattr(ad, f"read_{suffix}")(path)
    for kind in ("loops", "boundaries", "compartments", "interactions", "decay"):
        one, two = (dbio.get.differential_contacts(each, kind) for each in (changed, back))
        assert list(one.columns) == list(two.columns)
        np.testing.assert_allclose(one["log2_fold_change"], two["log2_fold_change"])


def test_nothing_to_test_keeps_columns(tmp_path):
    adata = dbio.datasets.simulate_contacts(60, n_replicates=2, n_conditions=2, contacts_per_bin=1.0, n_loops=0)
    empty = adata.uns["truth"]["loops"]
    assert not len(empty)
    dbio.tl.differential_contacts(adata, groups=GROUPS, features=["loops", "boundaries", "interactions"], loops=empty)
    record = adata.uns["differential_contacts"]
    assert not len(record["loops"])
    assert {"chrom1", "log2_fold_change", "ring_log2_fold_change", "pval", "qval"} <= set(record["loops"])
    assert record["boundaries"]["pval"].isna().all()
    adata.write_h5ad(tmp_path / "empty.h5ad")
    assert not len(dbio.get.differential_contacts(ad.read_h5ad(tmp_path / "empty.h5ad"), "loops"))


def test_copy_leaves_the_object(changed):
    adata = changed.copy()
    del adata.uns["differential_contacts"]
    adata.obs = adata.obs[["chrom", "start", "end"]]
    result = dbio.tl.differential_contacts(adata, groups=GROUPS, features="boundaries", copy=True)
    assert "differential_contacts" in result.uns
    assert "differential_contacts" not in adata.uns
    assert list(adata.obs) == ["chrom", "start", "end"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": {"a": ["contacts_a_1"]}}, ValueError, "two groups, found 1"),
        ({"groups": [["contacts_a_1"]]}, TypeError, "groups must be a mapping"),
        ({"groups": {"a": "contacts_a_1", "b": ["contacts_b_1"]}}, ValueError, "list of at least one"),
        ({"groups": {"a": ["contacts_a_1"], "b": ["contacts_a_1"]}}, ValueError, "found twice"),
        ({"groups": {"a": ["contacts_a_1"], "b": ["missing"]}}, KeyError, "missing"),
        ({"features": ["stripes"]}, ValueError, "features must be some of"),
        ({"features": ["loops"], "loops": "nothing"}, KeyError, "run dbio.tl.loops on the pooled map"),
        ({"features": ["compartments"], "compartment_key": "pc1"}, KeyError, "no column 'pc1'"),
        ({"features": ["boundaries"], "window": 10_000}, ValueError, "window must be at least 2 bins"),
        ({"features": ["boundaries"], "dispersion": -1.0}, ValueError, "dispersion"),
        ({"features": ["boundaries"], "loop_reach": 9}, ValueError, "loop_reach"),
        ({"features": ["boundaries"], "min_count": 0}, ValueError, "min_count"),
    ],
)
def test_refuses_before_any_work(changed, options, error, message):
    adata = changed.copy()
    del adata.uns["differential_contacts"]
    with pytest.raises(error, match=message):
        dbio.tl.differential_contacts(adata, **{"groups": GROUPS, **options})
    assert "differential_contacts" not in adata.uns


def test_loops_of_other_chromosomes(changed):
    adata = changed.copy()
    loops = adata.uns["truth"]["loops"].copy()
    loops["chrom1"] = loops["chrom2"] = "1"
    with pytest.raises(ValueError, match=r"none of the .* loops lies within a chromosome.*\['1'\].*chr1"):
        dbio.tl.differential_contacts(adata, groups=GROUPS, features="loops", loops=loops)
    with pytest.raises(KeyError, match="lack the columns"):
        dbio.tl.differential_contacts(adata, groups=GROUPS, features="loops", loops=loops[["chrom1", "start1"]])
    some = adata.uns["truth"]["loops"].copy()
    some.loc[0, ["chrom1", "chrom2"]] = "chr9"
    with pytest.warns(UserWarning, match=f"1 of {len(some)} loops lie outside"):
        dbio.tl.differential_contacts(adata, groups=GROUPS, features="loops", loops=some)
    assert len(adata.uns["differential_contacts"]["loops"]) == len(some) - 1


def test_balanced_and_empty_maps_are_refused(changed):
    adata = changed.copy()
    adata.obsp["contacts_b_2"] = adata.obsp["contacts_b_2"] * 0.37
    with pytest.raises(ValueError, match="raw counts"):
        dbio.tl.differential_contacts(adata, groups=GROUPS, features="boundaries")
    adata.obsp["contacts_b_2"] = sp.csr_array(adata.obsp["contacts_b_1"].shape, dtype=np.int32)
    with pytest.raises(ValueError, match="'contacts_b_2' holds no contacts"):
        dbio.tl.differential_contacts(adata, groups=GROUPS, features="boundaries")


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="DIFFBIO_SC_DATA holds no hic folder")
def test_real_replicates_do_not_differ():
    pytest.importorskip("cooler")
    maps = {name: dbio.io.read_cool(DATA / f"gm12878_chr22_{name}_50kb.cool") for name in ("prim", "rep")}
    adata = dbio.pp.combine_contacts(maps)
    with pytest.warns(UserWarning, match="one replicate"):
        dbio.tl.differential_contacts(
            adata,
            groups={"prim": ["contacts_prim"], "rep": ["contacts_rep"]},
            features=["boundaries", "interactions"],
            interaction_size=500_000,
            max_distance=10_000_000,
        )
    for kind in ("boundaries", "interactions"):
        table = adata.uns["differential_contacts"][kind]
        assert (table["pval"] < 0.05).sum() / table["pval"].notna().sum() <= 0.06
        assert (table["qval"] < 0.05).sum() / table["pval"].notna().sum() <= 0.06
