"""Simulated contact maps: the counts hold what their truth says."""

import numpy as np
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio


def flat(**options):
    """A map without any structure but the decay."""
    quiet = {
        "compartment_strength": 0.0,
        "n_loops": 0,
        "n_stripes": 0,
        "bias_sd": 0.0,
        "masked_share": 0.0,
        "replicate_sd": 0.0,
    }
    return dbio.datasets.simulate_contacts(**{**quiet, **options})


def test_counts_are_symmetric_whole_numbers_of_the_asked_depth():
    adata = dbio.datasets.simulate_contacts(400, contacts_per_bin=500, replicate_sd=0.0)
    counts = adata.obsp["contacts"]
    assert counts.dtype == np.int32
    assert (counts != counts.T).nnz == 0
    assert counts.has_canonical_format
    assert counts.data.min() > 0
    assert sp.triu(counts).sum() == pytest.approx(400 * 500, rel=0.03)
    assert not counts[adata.obs["true_masked"].to_numpy()].sum()


def test_seed_decides():
    one, two, other = (
        dbio.datasets.simulate_contacts(200, contacts_per_bin=100, rng=seed).obsp["contacts"] for seed in (1, 1, 2)
    )
    assert (one != two).nnz == 0
    assert (one != other).nnz > 0


def test_domains_follow_decay_and_boundaries():
    """Inside a domain contacts are more frequent by its boost, with the decay of the truth."""
    adata = flat(n_bins=800, contacts_per_bin=20_000, overdispersion=0.0)
    counts = adata.obsp["contacts"].toarray().astype(float)
    decay = adata.uns["truth"]["decay"]
    domain = np.cumsum(adata.obs["true_boundary"].to_numpy())
    ratios = []
    for distance in (3, 8, 15):
        here = np.diagonal(counts, distance) / decay[distance]
        same = domain[distance:] == domain[:-distance]
        ratios.append(here[~same].mean())
        assert here[same].mean() / here[~same].mean() > 1.35
    np.testing.assert_allclose(ratios, np.mean(ratios), rtol=0.05)


def test_compartments_show_far_from_the_diagonal():
    strength = 0.45
    adata = flat(n_bins=1000, contacts_per_bin=20_000, compartment_strength=strength, overdispersion=0.0)
    counts = adata.obsp["contacts"].toarray().astype(float)
    compartment = adata.obs["true_compartment"].to_numpy()
    row, column = np.triu_indices(1000, 150)
    product = compartment[row] * compartment[column]
    scaled = counts[row, column] / adata.uns["truth"]["decay"][column - row]
    edges = np.quantile(product, np.linspace(0, 1, 11))
    index = np.digitize(product, edges[1:-1])
    level = np.log(np.bincount(index, scaled) / np.bincount(index))
    middle = np.bincount(index, product) / np.bincount(index)
    assert np.polyfit(middle, level, 1)[0] == pytest.approx(strength, rel=0.05)


def test_loops_are_enriched_as_the_truth_says():
    adata = flat(n_bins=600, contacts_per_bin=100_000, n_loops=10, overdispersion=0.0)
    counts = adata.obsp["contacts"].toarray().astype(float)
    loops = adata.uns["truth"]["loops"]
    assert len(loops) == 10
    assert loops["width"].between(0.7, 1.4).all()
    one, two = loops["bin1"].to_numpy(), loops["bin2"].to_numpy()
    domain = np.cumsum(adata.obs["true_boundary"].to_numpy())
    row, column = np.triu_indices(600, 10)
    between = domain[row] != domain[column]
    scaled = counts[row, column] / adata.uns["truth"]["decay"][column - row]
    plain = np.median(scaled[between])
    free = domain[one] != domain[two]
    assert free.any()
    found = counts[one, two] / adata.uns["truth"]["decay"][two - one] / plain
    np.testing.assert_allclose(found[free], loops["enrichment"][free], rtol=0.15)


def test_replicates_are_overdispersed_as_asked():
    adata = flat(n_bins=200, contacts_per_bin=20_000, overdispersion=0.1, n_replicates=2)
    one, two = (adata.obsp[f"contacts_a_{replicate}"].toarray().astype(float) for replicate in (1, 2))
    row, column = np.triu_indices(200, 20)  # beyond the few pairs near the diagonal, which would decide alone
    mean = (one + two)[row, column] / 2
    difference = (one - two)[row, column]
    # Var(y1 - y2) = 2 (m + phi m^2) for each pair of bins; E[mean^2] exceeds m^2 by half of that over two.
    variance = np.sum(difference**2) / 2
    square = np.sum(mean**2) - variance / 2
    assert (variance - mean.sum()) / square == pytest.approx(0.1, rel=0.05)
    assert (adata.obsp["contacts"] != adata.obsp["contacts_a_1"] + adata.obsp["contacts_a_2"]).nnz == 0


def test_conditions_differ_where_the_truth_says():
    adata = flat(
        n_bins=1200, contacts_per_bin=50_000, n_conditions=2, n_loops=24, overdispersion=0.0, changed_share=0.5, rng=3
    )
    one, two = (adata.obsp[f"contacts_{condition}_1"].toarray().astype(float) for condition in "ab")
    loops = adata.uns["truth"]["loops"]
    change = np.log2(two[loops["bin1"], loops["bin2"]] / one[loops["bin1"], loops["bin2"]] * one.sum() / two.sum())
    np.testing.assert_allclose(change, loops["log2_fold_change"], atol=0.25)
    assert loops["changed"].any()
    assert not loops["changed"].all()
    # Without compartments, and away from domains that move, a change is the asked fold exactly.
    np.testing.assert_allclose(np.abs(loops.loc[loops["changed"], "log2_fold_change"]), 1.0, atol=0.5)
    boundaries = adata.uns["truth"]["boundaries"]
    assert (boundaries["change"] == "lost").sum() == (boundaries["change"] == "gained").sum() > 0
    moved = adata.obs["true_boundary"].to_numpy() != adata.obs["true_boundary_b"].to_numpy()
    assert set(np.flatnonzero(moved)) == set(boundaries.loc[boundaries["change"] != "same", "bin"])


def test_trans_contacts_have_the_asked_share():
    adata = dbio.datasets.simulate_contacts({"I": 150, "X": 100}, trans_share=0.2, contacts_per_bin=400, replicate_sd=0)
    counts = adata.obsp["contacts"]
    chrom = adata.obs["chrom"].to_numpy() == "I"
    trans = counts[chrom][:, ~chrom].sum()
    assert trans / sp.triu(counts).sum() == pytest.approx(0.2, rel=0.05)
    assert adata.obs["start"].to_numpy()[150] == 0
    assert adata.obs_names[150] == "X:0-10000"


def test_reach_limits_distance():
    adata = dbio.datasets.simulate_contacts(500, contacts_per_bin=100, max_distance=300_000)
    counts = adata.obsp["contacts"].tocoo()
    assert np.abs(counts.row - counts.col).max() == 30


def test_survives_h5ad(tmp_path):
    import anndata

    adata = dbio.datasets.simulate_contacts(200, contacts_per_bin=50, n_replicates=2, n_conditions=2, n_loops=0)
    adata.write_h5ad(tmp_path / "map.h5ad")
    back = anndata.read_h5ad(tmp_path / "map.h5ad")
    assert (back.obsp["contacts_b_2"] != adata.obsp["contacts_b_2"]).nnz == 0
    assert list(back.uns["truth"]["loops"].columns) == list(adata.uns["truth"]["loops"].columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_bins": 10}, "at least 40"),
        ({"n_conditions": 3}, "n_conditions must be a whole number from 1 to 2"),
        ({"loop_width": (2.0, 1.0)}, "loop_width"),
        ({"trans_share": 0.1}, "two chromosomes"),
        ({"contacts_per_bin": 0.0}, "contacts_per_bin"),
        ({"changed_share": 1.5}, "changed_share"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        dbio.datasets.simulate_contacts(**options)
