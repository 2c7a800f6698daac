"""Tidy tables of states against loops over bins."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio


@pytest.fixture
def annotated():
    adata = dbio.datasets.simulate_chromatin_states(n_bins=400, n_cell_types=2, n_chromosomes=2)
    model = dbio.get.chromatin_state_model(adata, key="truth")
    codes = adata.obs["truth"].cat.codes.to_numpy()
    rng = np.random.default_rng(0)
    posterior = rng.dirichlet(np.ones(7), len(codes)).astype(np.float32)
    adata.obsm["chromatin_state_posterior"] = posterior
    adata.obs["chromatin_state"] = adata.obs["truth"].where(rng.random(len(codes)) > 0.02)
    adata.uns["chromatin_states"] = {
        **adata.uns["truth"],
        "colors": np.array([f"#00000{index}" for index in range(7)]),
        "standard_errors": {"emission": 0.1 * model.emission, "transition": 0.2 * model.transition},
        "params": {"cell_type_key": "cell_type", "axis": "obs"},
    }
    # A gap: bins 50 to 59 of chr1 in both cell types are not there.
    gone = (adata.obs["chrom"] == "chr1") & adata.obs["start"].between(10_000, 11_800)
    return adata[~gone].copy(), model


def test_segments_are_runs_of_bins(annotated):
    adata, model = annotated
    table = dbio.get.chromatin_states(adata)
    expected = []
    for (cell, chrom), rows in adata.obs.groupby(["cell_type", "chrom"], observed=True):
        last = None
        for name, row in rows.sort_values("start").iterrows():
            state = row["chromatin_state"]
            if pd.isna(state):
                last = None
                continue
            sure = adata.obsm["chromatin_state_posterior"][adata.obs_names.get_loc(name), model.states.index(state)]
            if last is not None and last[3] == row["start"] and last[4] == state:
                last[3] = row["end"]
                last[5].append(sure)
            else:
                last = [cell, chrom, row["start"], row["end"], state, [sure]]
                expected.append(last)
    assert len(table) == len(expected)
    columns = ["cell_type", "chrom", "start", "end", "state"]
    assert table[columns].astype(str).to_numpy().tolist() == [[str(item) for item in row[:5]] for row in expected]
    np.testing.assert_allclose(table["posterior"], [np.mean(row[5]) for row in expected], rtol=1e-5)
    assert table["color"].tolist() == [f"#00000{model.states.index(row[4])}" for row in expected]


def test_order_of_bins_does_not_matter(annotated):
    adata, _ = annotated
    shuffled = adata[np.random.default_rng(1).permutation(len(adata))].copy()
    columns = ["cell_type", "chrom", "start", "end", "state", "color"]
    one, two = (
        dbio.get.chromatin_states(each)[columns].astype(str).sort_values(columns[:3], ignore_index=True)
        for each in (adata, shuffled)
    )
    pd.testing.assert_frame_equal(one, two)


def test_coverage_adds_up(annotated):
    adata, model = annotated
    table = dbio.get.chromatin_states(adata, kind="coverage").set_index(["cell_type", "state"])
    for (cell, state), row in table.iterrows():
        mine = adata.obs[(adata.obs["cell_type"] == cell) & (adata.obs["chromatin_state"] == state)]
        assert row["bases"] == 200 * len(mine)
        known = (adata.obs["cell_type"] == cell) & adata.obs["chromatin_state"].notna()
        assert row["fraction"] == pytest.approx(len(mine) / known.sum())
    assert table["fraction"].groupby("cell_type", observed=True).sum().tolist() == pytest.approx([1, 1])
    segments = dbio.get.chromatin_states(adata)
    mine = segments[(segments["cell_type"] == "cell1") & (segments["state"] == model.states[3])]
    row = table.loc[("cell1", model.states[3])]
    assert row["segments"] == len(mine)
    assert row["mean_length"] == pytest.approx((mine["end"] - mine["start"]).mean())


def test_the_model_as_tables(annotated):
    adata, model = annotated
    emissions = dbio.get.chromatin_states(adata, kind="emissions")
    row = emissions[(emissions["state"] == model.states[2]) & (emissions["mark"] == "H3K4me1")].iloc[0]
    assert (row["value"], row["standard_error"]) == (0.7, pytest.approx(0.07))
    transitions = dbio.get.chromatin_states(adata, kind="transitions")
    wide = transitions.pivot(index="state", columns="next_state", values="probability").to_numpy()
    np.testing.assert_array_equal(wide, model.transition)
    np.testing.assert_allclose(transitions["standard_error"], 0.2 * transitions["probability"])
    counts = dbio.datasets.simulate_chromatin_states(n_bins=10, n_chromosomes=1, family="negative_binomial")
    assert (dbio.get.chromatin_states(counts, kind="emissions", key="truth")["dispersion"] == 0.5).all()


def test_the_other_axis(annotated):
    adata, _ = annotated
    turned = ad.AnnData(adata.X.T, var=adata.obs, varm=dict(adata.obsm), uns=dict(adata.uns))
    turned.uns["chromatin_states"] = {**adata.uns["chromatin_states"], "params": {"cell_type_key": "cell_type"}}
    pd.testing.assert_frame_equal(dbio.get.chromatin_states(turned), dbio.get.chromatin_states(adata))


def test_parts_of_an_object_keep_the_model_s_states(annotated):
    adata, model = annotated
    part = adata[adata.obs["truth"] == "Polycomb"].copy()
    table = dbio.get.chromatin_states(part)
    assert table["state"].unique().tolist() == ["Polycomb"]
    assert table["state"].cat.categories.tolist() == list(model.states)
    assert table["color"].unique().tolist() == ["#000005"]


def test_the_model_goes_through_a_file(annotated, tmp_path):
    adata, model = annotated
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = dbio.get.chromatin_state_model(ad.read_h5ad(tmp_path / "a.h5ad"))
    np.testing.assert_array_equal(again.transition, model.transition)
    assert again.states == model.states
    assert again.colors[3] == "#000003"


def test_what_is_not_there(annotated):
    adata, _ = annotated
    with pytest.raises(ValueError, match="kind must be 'segments', .* or 'coverage', found 'x'"):
        dbio.get.chromatin_states(adata, kind="x")
    with pytest.raises(KeyError, match="no column 'x_chromatin_state'"):
        dbio.get.chromatin_states(adata, key="x", cell_type_key="cell_type")
    for kind in ("emissions", "transitions"):
        with pytest.raises(KeyError, match="no model of chromatin states 'x'"):
            dbio.get.chromatin_states(adata, kind=kind, key="x")
    with pytest.raises(KeyError, match="no column 'y'"):
        dbio.get.chromatin_states(adata, column="y")
    adata.obs["none"] = pd.Series(np.nan, index=adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match="gives no bin a state"):
        dbio.get.chromatin_states(adata, column="none")
