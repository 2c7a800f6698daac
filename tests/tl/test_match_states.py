"""Names of states in an object: by marks, or after a reference."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio
from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel


@pytest.fixture
def annotated():
    adata = dbio.datasets.simulate_chromatin_states(n_bins=300)
    model = dbio.get.chromatin_state_model(adata, key="truth")
    adata.uns["chromatin_states"] = {
        **adata.uns.pop("truth"),
        "states": np.array([f"E{number}" for number in range(1, 8)]),
        "params": {"axis": "obs"},
    }
    codes = adata.obs["truth"].cat.codes
    for column in ("chromatin_state", "chromatin_state_viterbi"):
        adata.obs[column] = pd.Categorical.from_codes(codes, [f"E{number}" for number in range(1, 8)])
    return adata, model


def test_names_by_marks_go_everywhere(annotated):
    adata, model = annotated
    codes = adata.obs["chromatin_state"].cat.codes.to_numpy()
    dbio.tl.match_states(adata)
    names = [f"E{number}_{state.replace(' ', '_')}" for number, state in enumerate(model.states, 1)]
    assert adata.uns["chromatin_states"]["states"].tolist() == names
    assert adata.uns["match_states"]["table"]["state"].tolist() == [f"E{number}" for number in range(1, 8)]
    for column in ("chromatin_state", "chromatin_state_viterbi"):
        assert adata.obs[column].cat.categories.tolist() == names
        np.testing.assert_array_equal(adata.obs[column].cat.codes, codes)
    assert dbio.get.chromatin_state_model(adata).states == tuple(names)
    assert dbio.get.chromatin_state_model(adata).colors[0] == "#d55e00"


def test_names_after_a_shuffled_reference(annotated, tmp_path):
    adata, model = annotated
    order = np.random.default_rng(0).permutation(7)
    reference = model.reorder(order).marginalise(model.marks[::-1])
    dbio.tl.match_states(adata, reference)
    assert adata.uns["chromatin_states"]["states"].tolist() == list(model.states)
    assert (adata.obs["chromatin_state"].astype(str) == adata.obs["truth"].astype(str)).all()
    table = adata.uns["match_states"]["table"]
    np.testing.assert_allclose(table["distance"], 0, atol=1e-12)
    assert table["match"].tolist() == table["nearest"].tolist() == list(model.states)
    # A file of the same model knows numbers alone.
    dbio.io.write_chromhmm_model(reference, tmp_path / "model.txt")
    dbio.tl.match_states(adata, tmp_path / "model.txt")
    expected = [f"E{order.tolist().index(state) + 1}" for state in range(7)]
    assert adata.uns["chromatin_states"]["states"].tolist() == expected


def test_an_object_lends_its_names(annotated):
    adata, _ = annotated
    reference = adata.copy()
    dbio.tl.match_states(reference)
    dbio.tl.match_states(adata, reference)
    for field in ("states", "colors"):
        assert adata.uns["chromatin_states"][field].tolist() == reference.uns["chromatin_states"][field].tolist()


def test_states_without_a_match_say_so(annotated):
    adata, model = annotated
    small = ChromatinStateModel(
        [0.5, 0.5], np.full((2, 2), 0.5), model.emission[[0, 3]], model.marks, states=("Tss", "Tx")
    )
    with pytest.warns(UserWarning, match=r"7 states, 2 in the reference: .* left without a match"):
        dbio.tl.match_states(adata, small)
    names = adata.uns["chromatin_states"]["states"].tolist()
    assert (names[0], names[3], names[1]) == ("Tss", "Tx", "E2_unmatched")


def test_the_table_alone(annotated):
    adata, _ = annotated
    before = adata.copy()
    dbio.tl.match_states(adata, rename=False)
    assert adata.obs.equals(before.obs)
    assert adata.uns["chromatin_states"]["states"].tolist() == before.uns["chromatin_states"]["states"].tolist()
    assert adata.uns["match_states"]["table"]["name"][0] == "E1_Active_promoter"
    changed = dbio.tl.match_states(adata, copy=True)
    assert changed.obs["chromatin_state"].cat.categories[0] == "E1_Active_promoter"
    assert adata.obs.equals(before.obs)


def test_bad_references_and_missing_models(annotated, tmp_path):
    adata, model = annotated
    before = adata.uns["chromatin_states"]["states"].tolist()
    with pytest.raises(KeyError, match=r"no model of chromatin states 'x'.*keys: \['chromatin_states'\]"):
        dbio.tl.match_states(adata, key="x")
    with pytest.raises(TypeError, match="found list"):
        dbio.tl.match_states(adata, [1])
    with pytest.raises(FileNotFoundError, match="none.txt"):
        dbio.tl.match_states(adata, tmp_path / "none.txt")
    other = ChromatinStateModel([1.0], [[1.0]], [[0.4]], ("unknown",))
    with pytest.raises(ValueError, match="share no mark"):
        dbio.tl.match_states(adata, other)
    with pytest.warns(UserWarning, match="share 1 marks"):
        dbio.tl.match_states(adata, model.marginalise(["H3K4me3"]).rename([f"s{i}" for i in range(7)]), copy=True)
    assert adata.uns["chromatin_states"]["states"].tolist() == before
    adata.write_h5ad(tmp_path / "a.h5ad")
