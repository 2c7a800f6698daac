"""Pictures of contact maps show the numbers of the object."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio

mpl.use("Agg")


@pytest.fixture(scope="module")
def adata():
    adata = dbio.datasets.simulate_contacts(300, contacts_per_bin=800, n_replicates=2, n_conditions=2, rng=3)
    dbio.tl.contacts(adata, phasing_track="true_compartment")
    dbio.tl.differential_contacts(
        adata,
        groups={"a": ["contacts_a_1", "contacts_a_2"], "b": ["contacts_b_1", "contacts_b_2"]},
        loops=adata.uns["truth"]["loops"],
    )
    dbio.tl.saddle(adata, n_classes=10)
    dbio.tl.pileup(adata, adata.uns["truth"]["loops"], flank=50_000)
    return adata


@pytest.fixture(autouse=True)
def close():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def test_rotated_map_has_each_pixel_at_its_place(adata):
    axes = dbio.pl.contacts(adata, "chr1:500,000-900,000", show=False)
    top, compartment, insulation = axes
    mesh = top.collections[0]
    table = dbio.get.contacts(adata, "chr1:500,000-900,000").to_numpy()
    corners = mesh.get_coordinates()
    # Pixel (3, 10): its four corners lie about the middle of the two bins, at their distance.
    square = corners[3:5, 10:12].reshape(-1, 2).mean(0)
    assert square[0] == pytest.approx(0.5 + (3.5 + 10.5) / 2 * 0.01)
    assert square[1] == pytest.approx(0.07)
    shown = np.ma.filled(mesh.get_array().reshape(40, 40), np.nan)
    positive = table[3, 10] > 0
    assert positive
    assert shown[3, 10] == pytest.approx(table[3, 10])
    assert np.isnan(shown[10, 3])
    assert top.get_ylabel() == "distance (Mb)"
    assert insulation.get_xlabel() == "chr1 (Mb)"
    assert top.get_xlim() == pytest.approx((0.5, 0.9))
    loops = adata.uns["loops"]["table"]
    inside = (loops["start1"] >= 500_000) & (loops["end2"] <= 900_000)
    circles = top.collections[-1].get_offsets()
    assert len(circles) == inside.sum()
    first = loops[inside].iloc[0] if inside.any() else None
    if first is not None:
        middle = (first["start1"] + first["end1"] + first["start2"] + first["end2"]) / 4e6
        np.testing.assert_allclose(circles[0], [middle, (first["start2"] - first["start1"]) / 1e6])
    assert compartment.get_ylabel() == "compartment"


def test_large_maps_are_drawn_of_block_means(adata, monkeypatch):
    from diffbio_sc.pl._contact_panels import coarsen

    matrix = np.arange(25.0).reshape(5, 5)
    matrix[0, 0] = np.nan
    small, factor = coarsen(matrix, 3)
    assert factor == 2
    assert small[0, 0] == pytest.approx((1 + 5 + 6) / 3)
    assert small[2, 2] == 24.0
    same, one = coarsen(matrix, 5)
    assert one == 1
    assert same is matrix


def test_observed_over_expected_is_symmetric_in_colour(adata):
    top = dbio.pl.contacts(adata, values="oe", tracks=[], show=False)
    norm = top.collections[0].norm
    assert norm(0.0) == pytest.approx(0.5)
    assert norm.vmin == -norm.vmax
    counts = dbio.pl.contacts(adata, values="counts", tracks=["true_bias"], marks=[], vmin=1, vmax=50, show=False)
    assert counts[0].collections[0].norm.vmax == 50
    assert counts[1].get_ylabel() == "true_bias"


def test_differences(adata):
    axes = dbio.pl.differential_contacts(adata, "chr1:0-3,000,000", show=False)
    assert len(axes) == 3
    mesh = axes[0].collections[0]
    shown = np.ma.filled(mesh.get_array().reshape(150, 150), np.nan)
    truth = adata.uns["truth"]["loops"]
    changed = truth[truth["changed"]].iloc[0]
    block = shown[int(changed["bin1"]) // 2, int(changed["bin2"]) // 2]
    assert np.sign(block) == np.sign(changed["log2_fold_change"])
    assert abs(block) > 0.2
    assert abs(np.nanmedian(shown)) < 0.1
    marked = sum(len(each.get_offsets()) for each in axes[0].collections[1:])
    found = adata.uns["differential_contacts"]["loops"]
    assert marked == (found["qval"] <= 0.05).sum()


def test_decay_is_one_at_100_kb(adata):
    top, bottom = dbio.pl.contact_decay({"x": adata, "y": adata}, show=False)
    assert len(top.lines) == 2
    distance, mean = top.lines[0].get_data()
    at = np.searchsorted(distance, 1e5)
    assert mean[at] == pytest.approx(1.0)
    assert (np.diff(mean[: at + 5]) < 0).all()
    slope = bottom.lines[0].get_ydata()
    assert -1.6 < np.median(slope) < -0.5
    only = dbio.pl.contact_decay(adata, ax=top, show=False)
    assert only is top


def test_saddle_and_pileup(adata, tmp_path):
    ax = dbio.pl.saddle(adata, save=tmp_path / "saddle.png")
    np.testing.assert_allclose(ax.images[0].get_array(), np.log2(adata.uns["saddle"]["mean"]))
    assert f"{adata.uns['saddle']['report']['strength']:.2f}" in ax.get_title()
    ax = dbio.pl.pileup(adata, save=tmp_path / "pileup.png")
    assert ax.images[0].get_array().shape == (11, 11)
    assert ax.images[0].get_extent() == [-55, 55, 55, -55]
    assert (tmp_path / "saddle.png").stat().st_size > 5000
    assert (tmp_path / "pileup.png").stat().st_size > 5000


def test_errors(adata):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="map alone"):
        dbio.pl.contacts(adata, ax=ax)
    with pytest.raises(ValueError, match="map alone"):
        dbio.pl.differential_contacts(adata, ax=ax)
    with pytest.raises(KeyError, match="no track 'nothing'"):
        dbio.pl.contacts(adata, tracks=["nothing"])
    with pytest.raises(ValueError, match="marks must be"):
        dbio.pl.contacts(adata, marks=["stripes"])
    with pytest.raises(ValueError, match="values must be"):
        dbio.pl.contacts(adata, values="log")
    plain = dbio.datasets.simulate_contacts(60, contacts_per_bin=20)
    for function, maker in (
        (dbio.pl.differential_contacts, "differential_contacts"),
        (dbio.pl.contact_decay, "expected"),
        (dbio.pl.saddle, "saddle"),
        (dbio.pl.pileup, "pileup"),
    ):
        with pytest.raises(KeyError, match=f"dbio.tl.{maker}"):
            function(plain)
    with pytest.raises(KeyError, match="run dbio.tl.loops"):
        dbio.pl.contacts(plain, values="counts", marks=["loops"])
    assert dbio.pl.contacts(plain, values="counts", show=False) is not None


def test_compartments_of_arbitrary_sign_are_grey(adata):
    from matplotlib.colors import to_hex

    def colors(shown):
        axes = dbio.pl.contacts(shown, tracks=["compartment"], marks=[], show=False)
        return [to_hex(patch.get_facecolor()) for patch in axes[1].patches]

    unsure = adata.copy()
    unsure.obs["compartment_label"] = pd.Series(np.where(unsure.obs["compartment"] > 0, "A", "B"), unsure.obs_names)
    assert colors(unsure) == ["#b2402a", "#2c5f8a"]
    unsure.obs["compartment_label"] = unsure.obs["compartment_label"].where(unsure.obs["start"] < 1_500_000)
    assert colors(unsure) == ["#b2402a", "#2c5f8a", "#999999"]
    unsure.obs["compartment_label"] = unsure.obs["compartment_label"].where(np.zeros(unsure.n_obs, bool))
    assert colors(unsure) == ["#999999"]
