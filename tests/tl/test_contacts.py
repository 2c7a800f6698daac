"""The functions on contact maps: planted structure, cooler and cooltools in the same process, bad input, storage."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from no_warnings import no_warnings

import diffbio_sc as dbio
from diffbio_sc.numerics.genome.insulation import local_maxima

pytestmark = pytest.mark.filterwarnings("ignore:without phasing_track", "ignore:Writing zarr v2")


@pytest.fixture(scope="module")
def planted():
    adata = dbio.datasets.simulate_contacts(800, contacts_per_bin=1000, rng=0)
    dbio.tl.contacts(adata, phasing_track="gc")
    return adata


def bins(sizes, resolution=10_000) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "chrom": np.repeat([f"chr{k + 1}" for k in range(len(sizes))], sizes),
            "start": np.concatenate([np.arange(size) * resolution for size in sizes]),
        }
    )
    table["end"] = table["start"] + resolution
    table.index = table["chrom"] + ":" + table["start"].astype(str)
    return table


def even_map(sizes=(200, 150), depth=30.0, seed=0) -> ad.AnnData:
    """Decay alone, within and between chromosomes."""
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    chrom = np.repeat(np.arange(len(sizes)), sizes)
    distance = np.abs(np.subtract.outer(np.arange(total), np.arange(total)))
    mean = np.where(chrom[:, None] == chrom, depth / (1.0 + distance) ** 0.8, 0.5)
    upper = np.triu(rng.poisson(mean))
    return ad.AnnData(obs=bins(sizes), obsp={"contacts": sp.csr_matrix(upper + np.triu(upper, 1).T)})


def best_hits(found, truth, tolerance=2) -> int:
    free = list(truth)
    hits = 0
    for place in found:
        near = [other for other in free if np.max(np.abs(np.subtract(other, place))) <= tolerance]
        if near:
            free.remove(near[0])
            hits += 1
    return hits


def test_balanced_rows_sum_to_one(planted):
    weights = planted.obs["contact_weight"].to_numpy()
    assert planted.uns["balance"]["error"].max() <= 1e-6
    full = planted.obsp["contacts"].toarray().astype(float)
    near = np.abs(np.subtract.outer(np.arange(800), np.arange(800))) < 2
    balanced = np.where(near, 0.0, full) * np.outer(*[np.nan_to_num(weights)] * 2)
    good = np.isfinite(weights)
    np.testing.assert_allclose(balanced[good].sum(1), 1.0, atol=2e-6)
    np.testing.assert_array_equal(planted.obs["contact_bad_bin"], ~good)
    bias = planted.obs["true_bias"].to_numpy()
    assert np.corrcoef(np.log(weights[good]), -np.log(bias[good]))[0, 1] > 0.9


def test_expected_follows_the_planted_decay(planted):
    table = planted.uns["expected"]["table"]
    truth = np.asarray(planted.uns["truth"]["decay"])
    truth = truth if truth.ndim == 1 else truth[:, -1]
    part = slice(3, 400)
    smoothed = table["smoothed"].to_numpy()
    # Domains and compartments, which the planted curve leaves out, are part of what is expected at a distance.
    assert np.corrcoef(np.log(smoothed[part]), np.log(truth[part].astype(float)))[0, 1] > 0.97
    for low, high in ((3, 10), (10, 40), (40, 120), (120, 400)):
        average = np.average(table["balanced.avg"][low:high], weights=table["n_valid"][low:high])
        np.testing.assert_allclose(
            np.average(smoothed[low:high], weights=table["n_valid"][low:high]), average, rtol=0.05
        )
    assert table["slope"].to_numpy()[10:200].max() < 0
    pairs = int(np.isfinite(planted.obs["contact_weight"]).sum())
    assert table["n_valid"].iloc[0] == pairs
    assert table["count.sum"].iloc[:2].isna().all()


def test_compartments_follow_the_planted_ones(planted):
    truth = planted.obs["true_compartment"].to_numpy()
    found = planted.obs["compartment"].to_numpy()
    good = np.isfinite(found)
    assert np.corrcoef(found[good], truth[good])[0, 1] > 0.95
    assert np.abs(found[good]).max() <= 1
    raw = planted.obsm["X_compartment"][:, 0]
    assert np.corrcoef(raw[good], truth[good])[0, 1] > 0.9
    label = planted.obs["compartment_label"]
    assert (label[good] == np.where(found[good] > 0, "A", "B")).all()
    regions = planted.uns["compartments"]["regions"]
    assert regions["sign_confident"].all()
    assert planted.uns["compartments"]["phasing_track"] == "gc"


def test_sign_follows_the_track_and_is_no_guess_without_one(planted):
    adata = planted.copy()
    adata.obs["against"] = -adata.obs["true_compartment"]
    dbio.tl.compartments(adata, phasing_track="against", key_added="turned")
    good = np.isfinite(adata.obs["turned_compartment"])
    np.testing.assert_allclose(adata.obs["turned_compartment"][good], -adata.obs["compartment"][good], atol=1e-6)
    with pytest.warns(UserWarning, match="sign of compartments is arbitrary"):
        dbio.tl.compartments(adata, key_added="plain")
    assert adata.obs["plain_compartment_label"].isna().all()
    assert not adata.uns["plain"]["regions"]["sign_confident"].any()
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="beyond chance"):
        dbio.tl.compartments(adata, phasing_track=rng.normal(size=800), key_added="noise")


def test_tracks_of_other_bin_sizes(planted):
    adata = planted.copy()
    truth = adata.obs["true_compartment"].to_numpy()
    fine = pd.DataFrame({"chrom": "chr1", "start": np.arange(1600) * 5_000})
    fine["end"] = fine["start"] + 5_000
    fine["value"] = np.repeat(truth, 2)
    dbio.tl.compartments(adata, phasing_track=fine, key_added="fine")
    np.testing.assert_allclose(adata.obs["fine_compartment"], adata.obs["compartment"], atol=1e-6)
    assert adata.uns["fine"]["phasing_track"] == "value"
    genes = fine.loc[fine["value"] > 0.3, ["chrom", "start", "end"]]
    dbio.tl.compartments(adata, phasing_track=genes, key_added="genes")
    np.testing.assert_allclose(adata.obs["genes_compartment"], adata.obs["compartment"], atol=1e-6)
    with pytest.raises(ValueError, match="no chromosome in common.*prefix 'chr'"):
        dbio.tl.compartments(adata, phasing_track=genes.assign(chrom="1"))
    with pytest.raises(ValueError, match="a value for each of the 800 bins"):
        dbio.tl.compartments(adata, phasing_track=np.zeros(5))
    with pytest.raises(KeyError, match="neither a column.*nor a name"):
        dbio.tl.compartments(adata, phasing_track="gcc")


def test_boundaries_and_domains(planted):
    truth = planted.uns["truth"]["boundaries"]["bin"].to_numpy()
    called = np.flatnonzero(planted.obs["is_boundary"])
    hits = best_hits(called, truth)
    assert 2 * hits / (len(called) + len(truth)) > 0.9
    domains = planted.uns["insulation"]["tads"]
    assert set(domains["start"]) - {0} <= set(planted.obs["start"].to_numpy()[called])
    assert (domains["end"] > domains["start"]).all()
    probability = planted.obs["boundary_prob"].to_numpy()
    assert probability[called].min() > np.quantile(probability, 0.8)
    assert list(planted.obsm["insulation"].columns) == ["100000", "200000"]
    assert np.isnan(planted.obsm["insulation"].to_numpy()[0]).all()


def test_loops_are_those_planted(planted):
    table = planted.uns["loops"]["table"]
    truth = planted.uns["truth"]["loops"][["bin1", "bin2"]].to_numpy().tolist()
    found = table[["start1", "start2"]].to_numpy() // 10_000
    assert len(found) >= 4
    assert best_hits(found, truth) / len(found) > 0.8
    full = planted.obsp["contacts"]
    np.testing.assert_array_equal(table["count"], [full[i, j] for i, j in found])
    assert table["zscore"].is_monotonic_decreasing
    assert (table["qval"] <= 0.05).all()
    backgrounds = table[[f"expected_{name}" for name in ("donut", "lower_left", "horizontal", "vertical")]]
    np.testing.assert_allclose(table["expected"], backgrounds.max(axis=1), rtol=1e-5)


def test_one_by_one_gives_the_same_as_all_at_once(planted):
    adata = ad.AnnData(
        X=planted.X,
        obs=planted.obs[["chrom", "start", "end"]],
        var=planted.var,
        obsp={"contacts": planted.obsp["contacts"]},
    )
    assert dbio.tl.balance(adata) is None
    dbio.tl.expected(adata)
    dbio.tl.compartments(adata, phasing_track="gc")
    dbio.tl.insulation(adata)
    dbio.tl.loops(adata)
    for column in ("contact_weight", "compartment", "boundary_score", "boundary_prob", "is_boundary"):
        np.testing.assert_array_equal(adata.obs[column], planted.obs[column])
    pd.testing.assert_frame_equal(adata.uns["loops"]["table"], planted.uns["loops"]["table"])
    pd.testing.assert_frame_equal(adata.uns["expected"]["table"], planted.uns["expected"]["table"])


@pytest.mark.parametrize("storage", ["upper", "permuted", "var"])
def test_storage_order_and_axis_change_nothing(planted, storage):
    base = ad.AnnData(
        obs=planted.obs[["chrom", "start", "end", "true_compartment"]],
        obsp={"contacts": planted.obsp["contacts"]},
    )
    order = np.arange(800)
    if storage == "upper":
        base.obsp["contacts"] = sp.csr_matrix(sp.triu(base.obsp["contacts"]))
    elif storage == "permuted":
        order = np.random.default_rng(0).permutation(800)
        base = base[order].copy()
    else:
        base = ad.AnnData(var=base.obs, varp={"contacts": base.obsp["contacts"]})
    dbio.tl.contacts(base, phasing_track="true_compartment")
    table = base.var if storage == "var" else base.obs
    for column in ("contact_weight", "boundary_score", "is_boundary"):
        np.testing.assert_allclose(
            table[column].to_numpy(float), planted.obs[column].to_numpy(float)[order], rtol=1e-9, equal_nan=True
        )
    pd.testing.assert_frame_equal(base.uns["loops"]["table"], planted.uns["loops"]["table"])


def test_copy_leaves_the_object_alone(planted):
    adata = even_map()
    copy = dbio.tl.balance(adata, copy=True)
    assert "contact_weight" in copy.obs
    assert "contact_weight" not in adata.obs
    assert "balance" not in adata.uns


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_results_survive_files(planted, tmp_path, memory_store, form):
    planted = planted.copy()
    shallow = even_map((60,), 3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dbio.tl.contacts(shallow)
    for name, adata in (("full", planted), ("empty", shallow)):
        path = tmp_path / f"{name}.h5ad" if form == "h5ad" else memory_store()
        getattr(adata, f"write_{form}")(path)
        back = getattr(ad, f"read_{form}")(path)
        loops = back.uns["loops"]["table"]
        assert list(loops.columns) == list(adata.uns["loops"]["table"].columns)
        assert len(loops) == len(adata.uns["loops"]["table"])
        assert list(back.uns["insulation"]["tads"].columns) == ["chrom", "start", "end", "score_start", "score_end"]
        np.testing.assert_array_equal(back.obs["contact_weight"], adata.obs["contact_weight"])
        np.testing.assert_array_equal(back.obsm["X_compartment"], adata.obsm["X_compartment"])
        assert back.uns["contacts"]["params"]["key"] == "contacts"
    assert len(shallow.uns["loops"]["table"]) == 0


def test_regions_are_chromosomes_and_arms():
    adata = even_map()
    dbio.tl.balance(adata)
    dbio.tl.expected(adata, breaks={"chr1": 1_000_000})
    table = adata.uns["expected"]["table"]
    assert list(table["region"].cat.categories) == ["chr1_p", "chr1_q", "chr2"]
    assert (table["region"] == "chr1_p").sum() == 100
    dbio.tl.insulation(adata, breaks={"chr1": 1_000_000})
    scores = adata.obsm["insulation"].to_numpy()
    assert np.isnan(scores[100]).all()
    assert np.isfinite(scores[50]).all()
    with pytest.raises(ValueError, match="no chromosome in common"):
        dbio.tl.expected(adata, breaks={"1": 5})


def test_trans_balance_and_compartments():
    rng = np.random.default_rng(1)
    sizes = (120, 90, 60)
    total = sum(sizes)
    chrom = np.repeat(np.arange(3), sizes)
    sign = np.sign(np.sin(np.arange(total) / 6.0))
    bias = rng.lognormal(0.0, 0.3, total)
    mean = np.where(chrom[:, None] == chrom, 20.0, 2.0 * np.exp(0.4 * np.outer(sign, sign))) * np.outer(bias, bias)
    upper = np.triu(rng.poisson(mean))
    adata = ad.AnnData(obs=bins(sizes), obsp={"contacts": sp.csr_matrix(upper + np.triu(upper, 1).T)})
    adata.obs["track"] = sign
    dbio.tl.balance(adata, contact="trans")
    size = np.array(sizes)[chrom]
    x = np.nan_to_num(adata.obs["contact_weight"].to_numpy() / (1.0 - size / total))
    between = np.where(chrom[:, None] != chrom, upper + np.triu(upper, 1).T, 0)
    np.testing.assert_allclose((x * (between @ x))[x > 0], 1.0, atol=1e-5)
    dbio.tl.compartments(adata, contact="trans", phasing_track="track")
    good = np.isfinite(adata.obs["compartment"])
    assert np.corrcoef(adata.obs["compartment"][good], sign[good])[0, 1] > 0.9
    with pytest.raises(ValueError, match="two chromosomes"):
        dbio.tl.compartments(adata[:120].copy(), contact="trans")


class TestAgainstPeers:
    """cooler and cooltools on the same map, in the same process."""

    @pytest.fixture(scope="class")
    @classmethod
    def pair(cls, planted, tmp_path_factory):
        cooler = pytest.importorskip("cooler")
        path = str(tmp_path_factory.mktemp("cool") / "map.cool")
        upper = sp.coo_matrix(sp.triu(planted.obsp["contacts"]))
        order = np.lexsort((upper.col, upper.row))
        pixels = pd.DataFrame({"bin1_id": upper.row[order], "bin2_id": upper.col[order], "count": upper.data[order]})
        table = planted.obs[["chrom", "start", "end"]].reset_index(drop=True).astype({"chrom": str})
        cooler.create_cooler(path, table, pixels, ordered=True, dtypes={"count": np.int32})
        clr = cooler.Cooler(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weights, _ = cooler.balance_cooler(clr, cis_only=True, store=True, tol=1e-9, max_iters=2000)
        return planted, cooler.Cooler(path), weights

    def test_weights_are_those_of_cooler(self, pair):
        planted, _, weights = pair
        ours = planted.obs["contact_weight"].to_numpy()
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(weights))
        good = np.isfinite(ours)
        np.testing.assert_allclose(ours[good], weights[good], rtol=1e-4)

    def view(self, clr):
        return pd.DataFrame({"chrom": ["chr1"], "start": [0], "end": [int(clr.chromsizes["chr1"])], "name": ["chr1"]})

    @pytest.mark.filterwarnings("ignore")
    def test_expected_is_that_of_cooltools(self, pair):
        cooltools = pytest.importorskip("cooltools")
        planted, clr, weights = pair
        adata = planted.copy()
        adata.obs["w"] = weights
        theirs = cooltools.expected_cis(clr, view_df=self.view(clr), nproc=1)
        dbio.tl.expected(adata, weight_key="w", method="cooltools", key_added="ct")
        ours = adata.uns["ct"]["table"]
        for mine, other in (("n_valid", "n_valid"), ("count.sum", "count.sum"), ("balanced.avg", "balanced.avg")):
            np.testing.assert_allclose(ours[mine].to_numpy(float)[2:], theirs[other].to_numpy(float)[2:], rtol=1e-9)
        np.testing.assert_allclose(
            ours["smoothed"].to_numpy()[2:], theirs["balanced.avg.smoothed"].to_numpy()[2:], rtol=1e-6
        )

    @pytest.mark.filterwarnings("ignore")
    def test_insulation_is_that_of_cooltools(self, pair):
        cooltools = pytest.importorskip("cooltools")
        planted, clr, weights = pair
        adata = planted.copy()
        adata.obs["w"] = weights
        theirs = cooltools.insulation(clr, [100_000, 200_000], view_df=self.view(clr), ignore_diags=2, nproc=1)
        dbio.tl.insulation(adata, windows=[100_000, 200_000], weight_key="w", method="cooltools", key_added="ct")
        for window in (100_000, 200_000):
            ours = adata.obsm["ct_insulation"][str(window)].to_numpy()
            other = theirs[f"log2_insulation_score_{window}"].to_numpy()
            np.testing.assert_allclose(ours, other, atol=1e-9, equal_nan=True)
        np.testing.assert_allclose(
            adata.obs["ct_boundary_score"], theirs["boundary_strength_200000"], atol=1e-9, equal_nan=True
        )
        np.testing.assert_array_equal(adata.obs["ct_is_boundary"], theirs["is_boundary_200000"])


class TestBadInput:
    """Section e of the research, what concerns these functions."""

    def test_unbalanced_map_names_the_remedy(self):
        adata = even_map()
        for function in (dbio.tl.expected, dbio.tl.compartments, dbio.tl.insulation, dbio.tl.loops):
            with pytest.raises(KeyError, match=r"no column 'contact_weight'.*dbio.tl.balance"):
                function(adata)
        adata.obs["KR"] = 1.0
        with pytest.raises(KeyError, match=r"may hold weights: \['KR'\]"):
            dbio.tl.expected(adata)
        assert list(adata.uns) == []

    def test_divisive_weights_are_noticed(self, planted):
        adata = planted.copy()
        adata.obs["KR"] = 1.0 / adata.obs["contact_weight"]
        with pytest.warns(UserWarning, match="divisive=True"):
            dbio.tl.expected(adata, weight_key="KR", key_added="wrong")
        with no_warnings():
            dbio.tl.expected(adata, weight_key="KR", divisive=True, key_added="right")
        np.testing.assert_allclose(
            adata.uns["right"]["table"]["smoothed"], adata.uns["expected"]["table"]["smoothed"], rtol=1e-6
        )

    @pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf])
    def test_bad_weights(self, bad):
        adata = even_map()
        adata.obs["w"] = bad
        with pytest.raises(ValueError, match=r"adata.obs\['w'\]"):
            dbio.tl.expected(adata, weight_key="w")

    def test_balanced_values_are_refused(self):
        adata = even_map()
        adata.obsp["contacts"] = adata.obsp["contacts"].astype(float) * 0.1
        for function in (dbio.tl.balance, dbio.tl.contacts):
            with pytest.raises(ValueError, match="look balanced or normalised"):
                function(adata)

    def test_missing_diagonals_and_one_empty_chromosome(self):
        adata = even_map((200, 40, 1))
        matrix = adata.obsp["contacts"].tolil()
        matrix.setdiag(0)
        matrix[200:240] = 0
        matrix[:, 200:240] = 0
        adata.obsp["contacts"] = matrix.tocsr()
        with pytest.warns(UserWarning, match=r"2 chromosomes have no bin.*chr2.*chr3"):
            dbio.tl.contacts(adata)
        assert adata.obs["contact_weight"][200:].isna().all()
        assert np.isfinite(adata.obs["contact_weight"][:200]).mean() > 0.9
        table = adata.uns["expected"]["table"]
        assert table.loc[table["region"] == "chr2", "smoothed"].isna().all()
        assert adata.obs["compartment"][200:].isna().all()

    def test_all_zero_map(self):
        adata = even_map((80,))
        adata.obsp["contacts"] = sp.csr_matrix((80, 80), dtype=np.int32)
        with pytest.warns(UserWarning, match="all weights are NaN"):
            dbio.tl.contacts(adata)
        assert adata.obs["contact_weight"].isna().all()
        assert not adata.obs["is_boundary"].any()
        assert len(adata.uns["loops"]["table"]) == 0

    def test_shallow_map_is_scored_without_calls(self):
        adata = even_map((300,), 5.0)
        with pytest.warns(UserWarning, match="fewer than 100: boundaries are scored but none is called"):
            dbio.tl.contacts(adata)
        assert np.isfinite(adata.obs["boundary_score"]).any()
        assert not adata.obs["is_boundary"].any()
        assert adata.uns["contacts"]["n_loops"] == 0

    def test_deep_map(self):
        """More than 8192 expected contacts of a pair, where cooltools' chunks end."""
        adata = even_map((120,), 30_000.0)
        dbio.tl.contacts(adata)
        assert np.isfinite(adata.obs["contact_weight"][10:110]).all()
        assert len(adata.uns["loops"]["table"]) <= 2
        assert not adata.obs["is_boundary"].any()

    def test_sums_beyond_int32(self):
        adata = even_map((60,), 10.0)
        adata.obsp["contacts"] = adata.obsp["contacts"].astype(np.int64) * 300_000_000
        reference = even_map((60,), 10.0)
        dbio.tl.balance(adata)
        dbio.tl.balance(reference)
        ratio = adata.obs["contact_weight"] / reference.obs["contact_weight"]
        np.testing.assert_allclose(ratio.dropna(), 300_000_000**-0.5, rtol=1e-6)

    def test_windows(self):
        adata = even_map((100,))
        dbio.tl.balance(adata)
        with pytest.warns(UserWarning, match="longer than every region"):
            dbio.tl.insulation(adata, windows=[100_000, 5_000_000])
        assert adata.obsm["insulation"]["5000000"].isna().all()
        assert np.isfinite(adata.obs["boundary_score"]).any()
        for bad, message in (
            ([10_000], "at least 2 bins"),
            ([105_000], "multiples of the 10000 bp"),
            ([], "at least one"),
        ):
            with pytest.raises(ValueError, match=message):
                dbio.tl.insulation(adata, windows=bad)

    def test_gap_inside_windows_gives_no_score_there(self, planted):
        masked = planted.obs["true_masked"].to_numpy()
        runs = np.split(np.flatnonzero(masked), np.flatnonzero(np.diff(np.flatnonzero(masked)) > 1) + 1)
        longest = max(runs, key=len)
        if len(longest) < 12:
            pytest.skip("no long gap was drawn")
        middle = longest[len(longest) // 2]
        assert np.isnan(planted.obs["boundary_score"].to_numpy()[middle])
        assert not planted.obs["is_boundary"].to_numpy()[longest].any()

    def test_coarse_bins_have_no_loops(self):
        adata = even_map((60,), 500.0)
        table = bins((60,), 1_000_000)
        adata.obs[["chrom", "start", "end"]] = table[["chrom", "start", "end"]].to_numpy()
        adata.obs = adata.obs.astype({"start": int, "end": int})
        dbio.tl.balance(adata)
        with pytest.warns(UserWarning, match="too coarse for loops"):
            dbio.tl.loops(adata)
        assert len(adata.uns["loops"]["table"]) == 0

    def test_bins_tied_to_one_partner(self):
        adata = even_map((100,), 50.0)
        matrix = adata.obsp["contacts"].tolil()
        for lonely in (20, 60):
            matrix[lonely] = 0
            matrix[:, lonely] = 0
            matrix[lonely, 40] = matrix[40, lonely] = 500
        adata.obsp["contacts"] = matrix.tocsr()
        with pytest.warns(UserWarning, match="cannot be balanced"):
            dbio.tl.balance(adata, min_nnz=0, mad_max=0)
        assert adata.uns["balance"]["n_unbalanced"] >= 1
        assert adata.uns["balance"]["error"].max() < 1e-6

    @pytest.mark.parametrize(
        ("function", "options", "message"),
        [
            ("balance", {"contact": "other"}, "contact must be"),
            ("balance", {"tolerance": 0}, "tolerance"),
            ("balance", {"ignore_diags": -1}, "ignore_diags"),
            ("balance", {"mad_max": -1}, "mad_max"),
            ("expected", {"method": "other"}, "method"),
            ("compartments", {"n_vectors": 0}, "n_vectors"),
            ("compartments", {"gamma": 2}, "gamma"),
            ("insulation", {"threshold": np.nan}, "threshold"),
            ("loops", {"fdr": 0}, "fdr"),
            ("loops", {"filter_width": -1}, "filter_width"),
            ("loops", {"min_valid": 2}, "min_valid"),
            ("contacts", {"fdr": 2}, "fdr"),
        ],
    )
    def test_arguments_out_of_range(self, function, options, message):
        adata = even_map((60,))
        if function not in ("balance", "contacts"):
            dbio.tl.balance(adata)
        before = sorted(adata.obs), sorted(adata.uns)
        with pytest.raises(ValueError, match=message):
            getattr(dbio.tl, function)(adata, **options)
        assert (sorted(adata.obs), sorted(adata.uns)) == before

    @pytest.mark.parametrize(
        "function",
        ["balance", "expected", "insulation", "loops", "compartments", "contacts", "saddle", "coverage_stats"],
    )
    def test_whole_numbers_of_any_type(self, planted, function):
        """Taken where they are whole, whatever holds them; named where they are not."""
        adata = planted[:300].copy()
        dbio.tl.contacts(adata)
        for value in (1.5, np.nan, np.inf, "2", True, None, -1):
            with pytest.raises(ValueError, match="ignore_diags must be a whole number of at least 0, found"):
                getattr(dbio.tl, function)(adata, ignore_diags=value)
        results = []
        for value in (3, 3.0, np.int8(3)):
            getattr(dbio.tl, function)(adata, ignore_diags=value)
            results.append(adata.copy())
        for other in results[1:]:
            for column in adata.obs:
                assert results[0].obs[column].equals(other.obs[column])

    def test_views_and_mudata(self, planted):
        view = planted[:400]
        dbio.tl.balance(view)
        assert len(view.obs["contact_weight"]) == 400
        with pytest.raises(TypeError, match="AnnData"):
            dbio.tl.balance({"contacts": 1})


@pytest.mark.data
class TestRealMaps:
    def read(self, folder, name) -> ad.AnnData:
        pytest.importorskip("cooler")
        return dbio.io.read_cool(folder / "hic" / name)

    def test_analytic_eigenvector(self, data_folder):
        adata = self.read(data_folder, "sin_eigs_mat.cool")
        adata.obs["contact_weight"] = 1.0
        track = pd.read_csv(data_folder / "hic" / "sin_eigs_track.tsv", sep="\t")
        adata.obs["track"] = track["value"].to_numpy()
        dbio.tl.compartments(adata, phasing_track="track", min_distance=0)
        for chrom, part in adata.obs.groupby("chrom", observed=True):
            values = adata[part.index].obsm["X_compartment"][:, 0]
            good = np.isfinite(values)
            assert np.corrcoef(values[good], part["track"][good])[0, 1] > 0.98, chrom

    def test_signs_with_genes_on_a_very_shallow_map(self, data_folder):
        adata = self.read(data_folder, "mm9_chr1_20kb.cool")
        genes = pd.read_csv(data_folder / "hic" / "mm9_chr1_genes.bed", sep="\t", header=None, usecols=[0, 1, 2])
        genes.columns = ["chrom", "start", "end"]
        dbio.tl.balance(adata)
        dbio.tl.compartments(adata, phasing_track=genes)
        assert adata.uns["compartments"]["regions"]["sign_confident"].all()

    def test_replicates_agree(self, data_folder):
        values = []
        for name in ("prim", "rep"):
            adata = self.read(data_folder, f"gm12878_chr22_{name}_50kb.cool")
            dbio.tl.balance(adata)
            dbio.tl.compartments(adata)
            values.append(adata.obs["compartment"].to_numpy())
        good = np.isfinite(values[0]) & np.isfinite(values[1])
        assert abs(np.corrcoef(values[0][good], values[1][good])[0, 1]) > 0.99

    def test_loops_of_chromosome_21(self, data_folder):
        adata = self.read(data_folder, "gm12878_chr21_10kb_hg19.cool")
        table = pd.read_csv(data_folder / "hic" / "gm12878_hiccups_chr21.bedpe", sep="\t", header=None)
        truth = np.unique(
            np.sort(np.column_stack([(table[1] + table[2]) // 2, (table[4] + table[5]) // 2]) // 10_000, axis=1), axis=0
        )
        truth = truth[truth[:, 1] - truth[:, 0] <= 200]
        dbio.tl.contacts(adata)
        found = adata.uns["loops"]["table"][["start1", "start2"]].to_numpy() // 10_000
        hits = best_hits(found.tolist(), truth.tolist())
        assert hits / len(found) >= 0.80
        assert 2 * hits / (len(found) + len(truth)) >= 0.62
        assert len(local_maxima(adata.obs["boundary_score"].to_numpy(), 5)) > 50


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 regions do not follow")
def test_compartments_of_cooltools(tmp_path):
    cooler, cooltools = pytest.importorskip("cooler"), pytest.importorskip("cooltools")
    adata = dbio.datasets.simulate_contacts(600, contacts_per_bin=3000, n_loops=0, rng=3)
    dbio.tl.balance(adata)
    dbio.tl.compartments(adata, phasing_track="true_compartment", method="cooltools")
    dbio.io.write_cool(adata, tmp_path / "map.cool")
    track = adata.obs[["chrom", "start", "end"]].astype({"chrom": str}).reset_index(drop=True)
    track["compartment"] = adata.obs["true_compartment"].to_numpy()
    values, theirs = cooltools.eigs_cis(cooler.Cooler(str(tmp_path / "map.cool")), track, n_eigs=3)
    np.testing.assert_allclose(adata.obsm["X_compartment"], theirs[["E1", "E2", "E3"]], atol=1e-8)
    np.testing.assert_allclose(adata.obs["compartment"], theirs["E1"], atol=1e-8)
    regions = adata.uns["compartments"]["regions"]
    found = regions[[f"eigenvalue_{k}" for k in (1, 2, 3)]].to_numpy(float)
    np.testing.assert_allclose(found, values[[f"eigval{k}" for k in (1, 2, 3)]].to_numpy(float), rtol=1e-8)
    assert regions["chosen"].tolist() == [0]
    with pytest.raises(ValueError, match="'weighted' or 'cooltools'"):
        dbio.tl.compartments(adata, method="other")
    with pytest.raises(ValueError, match="between chromosomes"):
        dbio.tl.compartments(adata, method="cooltools", contact="trans")


def test_monotone_expectation_never_rises():
    adata = even_map((200, 60), depth=2.0)
    dbio.tl.balance(adata)
    dbio.tl.expected(adata, monotone=True)
    for _, part in adata.uns["expected"]["table"].groupby("region", observed=True):
        assert (np.diff(part["smoothed"].to_numpy()[2:]) <= 1e-12).all()
    with pytest.raises(ValueError, match="regression"):
        dbio.tl.expected(adata, monotone=True, method="cooltools")


class TestM24:
    """M24: chromatin structure, contacts of enhancers with promoters, domains; as the page of contacts says."""

    def test_m24_chromatin_structure(self, planted):
        adata = planted.copy()
        table = dbio.get.compartments(adata)
        sides = (table["compartment"] > 0).to_numpy()
        truth = adata.obs["true_compartment"].to_numpy() > 0
        known = table["compartment"].notna().to_numpy()
        assert (sides == truth)[known].mean() > 0.9
        dbio.tl.saddle(adata, n_classes=10, min_distance=500_000)
        # Contacts within compartments over those between them, planted: exp(0.45 * x x') at the ends.
        assert 1.3 < adata.uns["saddle"]["strength"][0] < 3.0

    def test_m24_enhancer_and_promoter(self, planted):
        adata = planted.copy()
        pairs = adata.uns["truth"]["loops"][["chrom1", "start1", "end1", "chrom2", "start2", "end2"]]
        dbio.tl.pileup(adata, pairs, flank=80_000)
        away = pairs.assign(start2=pairs["start2"] + 150_000, end2=pairs["end2"] + 150_000)
        dbio.tl.pileup(adata, away[away["end2"] < 8_000_000], flank=80_000, key_added="away")
        assert adata.uns["pileup"]["report"]["enrichment"] > 1.5
        assert 0.7 < adata.uns["away"]["report"]["enrichment"] < 1.3

    def test_m24_domains(self, planted):
        adata = planted.copy()
        dbio.tl.insulation(adata, windows=[100_000, 200_000, 500_000])
        domains = dbio.get.tads(adata)
        truth = adata.uns["truth"]["boundaries"]["start"].to_numpy()
        inner = domains["start"].to_numpy()[1:]
        near = np.abs(inner[:, None] - truth).min(1) <= 20_000
        assert near.mean() > 0.9
        assert len(inner) > 0.8 * len(truth)
