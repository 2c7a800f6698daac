from __future__ import annotations

import anndata
import numpy as np
import pytest

import diffbio_sc as dbio


@pytest.fixture(scope="module")
def adata():
    return dbio.datasets.simulate_regulatory_regions(n_regions=4000, rng=3)


def test_planted_sites_carry_their_motif(adata):
    truth = adata.uns["truth"]
    best = np.array(["ACGT"[letter] for letter in range(4)])[truth["motifs"].argmax(2)]
    complement = str.maketrans("ACGT", "TGCA")
    agreement = []
    for site in truth["sites"].itertuples():
        found = adata.var["sequence"].iloc[site.region][site.start : site.end]
        if site.strand == "-":
            found = found.translate(complement)[::-1]
        agreement.append(
            np.mean([one == other for one, other in zip(found, best[int(site.factor[2:]) - 1], strict=True)])
        )
    assert abs(np.mean(agreement) - 0.91) < 0.005  # probability of the main letter
    starts = truth["sites"].sort_values(["region", "start"])
    same = starts["region"].to_numpy()[1:] == starts["region"].to_numpy()[:-1]
    assert (starts["start"].to_numpy()[1:][same] >= starts["end"].to_numpy()[:-1][same]).all()
    assert (truth["sites"]["end"] <= 100).all()


def test_probability_follows_from_acting_sites(adata):
    truth = adata.uns["truth"]
    factor = truth["sites"]["factor"].cat.codes.to_numpy()
    for cell in (0, 4):
        acting = np.zeros(adata.n_vars)
        np.add.at(acting, truth["sites"]["region"].to_numpy(), truth["gates"][cell][factor])
        effect = np.where(acting > 0, 3.5 * (1 + 0.15 * (acting - 1)), 0)
        np.testing.assert_allclose(adata.layers["probability"][cell], 1 / (1 + np.exp(2.5 - effect)), rtol=1e-5)
    # Draws of one region are shared by its cell types, so the rate over regions has the error of a binomial.
    for open_, probability in zip(adata.X, adata.layers["probability"], strict=True):
        error = np.sqrt((probability * (1 - probability)).sum())
        assert abs(open_.sum() - probability.sum()) < 4 * error


def test_expression_tells_the_gates(adata):
    truth, context = adata.uns["truth"], adata.obsm["tf_context"]
    values = context[list(truth["factors"])].to_numpy()
    assert values[truth["gates"]].min() > values[~truth["gates"]].max()
    assert truth["gates"][:, 0].all()
    assert not truth["gates"][:, 1:].all(0).any()
    assert truth["gates"].any(0).all()
    assert len(np.unique(truth["gates"], axis=0)) == adata.n_obs
    assert context.shape == (6, 20)


def test_windows_open_where_site_meets_promoter():
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=200, width=256, token=32, rng=1)
    truth, track, contacts = adata.uns["truth"], adata.varm["track"], adata.varm["contacts"]
    assert track.shape == (200, 6, 8)
    assert contacts.shape == (200, 8, 8)
    np.testing.assert_array_equal(contacts, contacts.transpose(0, 2, 1))
    assert contacts.min() >= 0
    assert contacts.max() <= 1
    assert (contacts[:, range(8), range(8)] == 1).all()
    expected = np.zeros_like(track)
    for site in truth["sites"].itertuples():
        token = site.start // 32
        loops = contacts[site.region, token, truth["promoter_token"][site.region]] == np.float32(0.9)
        assert loops == site.in_contact
        if loops:
            expected[site.region, truth["gates"][:, int(site.factor[2:]) - 1], token] = 1
    np.testing.assert_array_equal(track, expected)
    np.testing.assert_array_equal(adata.X, track.max(2).T)
    assert 0.2 < truth["sites"]["in_contact"].mean() < 0.8


def test_seed_and_files(tmp_path):
    one, same, other = (dbio.datasets.simulate_regulatory_regions(n_regions=60, rng=seed) for seed in (1, 1, 2))
    assert (one.var["sequence"] == same.var["sequence"]).all()
    assert (one.X == same.X).all()
    assert (one.var["sequence"].to_numpy() != other.var["sequence"].to_numpy()).all()
    one.write_h5ad(tmp_path / "one.h5ad")
    read = anndata.read_h5ad(tmp_path / "one.h5ad")
    assert read.uns["truth"]["sites"].equals(one.uns["truth"]["sites"])
    assert read.obsm["tf_context"].equals(one.obsm["tf_context"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_regions": 5}, "at least n_chromosomes"),
        ({"n_factors": 1}, "n_factors must be a whole number of at least 2"),
        ({"width": 10}, "width must be a whole number of at least 20"),
        ({"token": 30, "width": 128}, "token must divide width"),
        ({"token": 64, "width": 128}, "at least four tokens"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        dbio.datasets.simulate_regulatory_regions(**options)


def test_one_cell_type():
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=50, n_cell_types=1)
    assert adata.shape == (1, 50)
    assert adata.uns["truth"]["gates"].all()
