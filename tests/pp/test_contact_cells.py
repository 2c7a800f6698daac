"""Maps of single cells and of replicates: added up, described, put together."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio

DATA = Path(os.environ.get("DIFFBIO_SC_DATA", "missing")) / "hic"


def thin(counts, share, rng):
    """A cell: each contact of a deep map is kept with a small chance."""
    upper = sp.triu(counts).tocoo()
    kept = sp.csr_array(sp.coo_array((rng.binomial(upper.data, share), (upper.row, upper.col)), counts.shape))
    kept.eliminate_zeros()
    return sp.csr_array(kept + sp.triu(kept, 1).T).astype(np.int32)


@pytest.fixture(scope="module")
def deep():
    adata = dbio.datasets.simulate_contacts(400, resolution=100_000, contacts_per_bin=20_000, rng=2)
    adata.obs["compartment"] = np.where(adata.obs["true_masked"], np.nan, adata.obs["true_compartment"])
    return adata


@pytest.fixture(scope="module")
def cells(deep):
    rng = np.random.default_rng(0)
    maps = {}
    for number in range(26):
        each = deep[:, :0].copy()
        each.obsp["contacts"] = thin(deep.obsp["contacts"], 0.001, rng)
        maps[f"cell_{number}"] = each
    return dbio.io.ContactCells(maps)


def test_pseudobulk_adds_the_cells_of_each_label(cells):
    label = {name: "odd" if number % 2 else "even" for number, name in enumerate(list(cells)[:-1])}
    pooled = dbio.pp.pseudobulk(cells, groupby=label)
    assert list(pooled) == ["even", "odd"]
    for name, adata in pooled.items():
        mine = [cell for cell, each in label.items() if each == name]
        total = sum(cells[cell].obsp["contacts"] for cell in mine)
        assert (adata.obsp["contacts"] != total).nnz == 0
        assert adata.uns["pseudobulk"]["n_cells"] == len(mine)
    ordered = pd.Series(pd.Categorical(label.values(), categories=["odd", "even", "none"]), index=list(label))
    assert list(dbio.pp.pseudobulk(cells, groupby=ordered)) == ["odd", "even"]


def test_twenty_five_pooled_cells_give_scores(cells, deep):
    pooled = dbio.pp.pseudobulk(cells, groupby=dict.fromkeys(list(cells)[:25], "all"))["all"]
    pooled.obs["gc"] = deep.obs["true_compartment"].to_numpy() + 1.0
    dbio.tl.contacts(pooled, phasing_track="gc")
    known = pooled.obs["compartment"].notna() & ~deep.obs["true_masked"].to_numpy()
    assert known.mean() > 0.9
    assert np.corrcoef(pooled.obs["compartment"][known], deep.obs["true_compartment"][known])[0, 1] > 0.8
    assert pooled.obs["boundary_score"].notna().mean() > 0.8


def test_profiles_follow_decay_and_compartments(cells, deep):
    profiles = dbio.pp.contact_profiles(cells, reference=deep)
    assert profiles.n_obs == 26
    np.testing.assert_allclose(profiles.X.sum(1), 1.0, rtol=1e-5)
    bulk = dbio.pp.contact_profiles(dbio.io.ContactCells({"bulk": deep}), reference=deep)
    np.testing.assert_allclose(profiles.X.mean(0), bulk.X[0], atol=0.01)
    assert list(profiles.var["start"][:3]) == [0, 100_000, 200_000]
    strength = profiles.obs["compartment_strength"]
    one = float(bulk.obs["compartment_strength"].iloc[0])
    # Contacts of like and unlike compartments differ by exp(2 kappa x x') for |x| between .5 and 1.
    assert 2 * 0.45 * 0.5**2 < one * np.log(2) < 2 * 0.45
    z = (strength - one) / profiles.obs["compartment_strength_std"]
    assert abs(z.mean()) < 0.8
    assert 0.6 < z.std() < 1.5
    assert profiles.obs["n_contacts"].iloc[0] == sp.triu(cells["cell_0"].obsp["contacts"]).sum()


def test_a_cell_without_compartments_has_no_strength(deep):
    """Contacts shuffled along each distance keep their decay and lose their compartments."""
    rng = np.random.default_rng(1)
    size = deep.n_obs
    shuffled = np.zeros((size, size), np.int64)
    counts = deep.obsp["contacts"].toarray()
    for distance in range(size):
        line = rng.permutation(np.diagonal(counts, distance))
        place = np.arange(size - distance)
        shuffled[place, place + distance] = shuffled[place + distance, place] = line
    other = deep.copy()
    other.obsp["contacts"] = sp.csr_array(shuffled)
    profile = dbio.pp.contact_profiles(dbio.io.ContactCells({"a": other}), reference=deep)
    assert abs(profile.obs["compartment_strength"].iloc[0]) < 0.03


def test_cells_are_refused_with_reasons(cells, deep):
    with pytest.raises(TypeError, match="found the string 'type'"):
        dbio.pp.pseudobulk(cells, groupby="type")
    with pytest.raises(ValueError, match=r"none of the 1 barcodes asked for: \['x'\].*cell_0"):
        dbio.pp.pseudobulk(cells, groupby={"x": "y"})
    with pytest.raises(TypeError, match="ContactCells"):
        dbio.pp.contact_profiles(deep)
    with pytest.raises(KeyError, match="no column 'pc1'"):
        dbio.pp.contact_profiles(cells, reference=deep, compartment_key="pc1")
    with pytest.raises(ValueError, match="reference must have the bins of the cells"):
        dbio.pp.contact_profiles(cells, reference=deep[:300].copy())


def test_an_empty_cell_is_missing(deep):
    empty = deep[:, :0].copy()
    empty.obsp["contacts"] = sp.csr_array(empty.obsp["contacts"].shape, dtype=np.int32)
    profiles = dbio.pp.contact_profiles(dbio.io.ContactCells({"full": deep, "empty": empty}), reference=deep)
    assert profiles.obs["n_contacts"]["empty"] == 0
    assert profiles.obs.loc["empty", ["trans_share", "near_share", "compartment_strength"]].isna().all()
    assert np.isnan(profiles["empty"].X).all()


def test_combine_puts_maps_on_common_bins():
    one = dbio.datasets.simulate_contacts({"chr1": 60, "chr2": 50}, contacts_per_bin=50, trans_share=0.1)
    two = dbio.datasets.simulate_contacts({"chr2": 50, "chr1": 60}, contacts_per_bin=50, trans_share=0.1, rng=1)[:90]
    both = dbio.pp.combine_contacts({"x": one, "y": two})
    assert both.n_obs == 110
    assert list(both.obs["chrom"].cat.categories) == ["chr1", "chr2"]
    assert (both.obsp["contacts_x"] != one.obsp["contacts"]).nnz == 0
    place = both.obs_names.get_indexer(two.obs_names)
    assert (both.obsp["contacts_y"][place][:, place] != two.obsp["contacts"]).nnz == 0
    assert both.obsp["contacts_y"].sum() == two.obsp["contacts"].sum()
    assert (both.obsp["contacts"] != both.obsp["contacts_x"] + both.obsp["contacts_y"]).nnz == 0
    assert "contacts" not in dbio.pp.combine_contacts({"x": one}, pooled=False).obsp


def test_combine_refuses():
    one = dbio.datasets.simulate_contacts(50, contacts_per_bin=5)
    with pytest.raises(ValueError, match="bins of one width"):
        dbio.pp.combine_contacts({"x": one, "y": dbio.datasets.simulate_contacts(50, resolution=5000)})
    other = dbio.datasets.simulate_contacts({"1": 50}, contacts_per_bin=5)
    with pytest.raises(ValueError, match=r"share no chromosome.*named alike"):
        dbio.pp.combine_contacts({"x": one, "y": other})
    with pytest.raises(ValueError, match="at least one"):
        dbio.pp.combine_contacts({})
    with pytest.raises(TypeError, match="must map names"):
        dbio.pp.combine_contacts([one])


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="DIFFBIO_SC_DATA holds no hic folder")
def test_real_cells():
    pytest.importorskip("cooler")
    cells = dbio.io.read_scool(DATA / "scool_test_file.scool")
    assert len(cells) == 5
    profiles = dbio.pp.contact_profiles(cells)
    assert sorted(profiles.obs["n_contacts"]) == [173065, 204331, 251982, 302129, 395465]
    assert profiles.obs["near_share"].between(0.2, 0.95).all()
    pooled = dbio.pp.pseudobulk(cells, groupby=dict.fromkeys(cells, "all"))["all"]
    assert sp.triu(pooled.obsp["contacts"]).sum() == profiles.obs["n_contacts"].sum()
