from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from diffbio_sc._anndata import (
    align_names,
    check_key,
    make_record,
    read_coordinates,
    read_labels,
    read_numbers,
    storable_names,
    write_results,
)


@pytest.fixture
def adata():
    made = ad.AnnData(
        np.ones((4, 3), np.float32),
        obs=pd.DataFrame({"old": [1, 2, 3, 4]}, index=list("abcd")),
        var=pd.DataFrame(index=list("xyz")),
    )
    made.obsm["spatial"] = np.arange(8.0).reshape(4, 2)
    return made


def test_names_are_aligned_in_alphabetical_order():
    left, right = align_names(pd.Index(["c", "a", "b"]), pd.Index(["b", "z", "c"]), left_name="l", right_name="r")
    assert left.tolist() == [2, 0]
    assert right.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (["a", "a"], ["a"], "l must be unique, found 1 duplicated: .'a'"),
        (["a"], ["b", "b"], "r must be unique"),
        (["Actb"], ["ACTB"], "in another case"),
        (["ENSG1.4"], ["ENSG1.7"], "Ensembl version"),
        (["a"], ["b"], "share 0 names, at least 1"),
    ],
)
def test_names_that_do_not_match_are_explained(left, right, message):
    with pytest.raises(ValueError, match=message):
        align_names(pd.Index(left), pd.Index(right), left_name="l", right_name="r")


@pytest.mark.parametrize("kind", ["object", "category", "string", "number"])
def test_labels_of_every_kind(kind):
    values = {
        "object": pd.Series(["b", None, "a", "b"], dtype=object),
        "category": pd.Series(pd.Categorical(["b", None, "a", "b"], categories=["unused", "b", "a"])),
        "string": pd.Series(["b", None, "a", "b"], dtype="string"),
        "number": pd.Series([2, np.nan, 1, 2]),
    }[kind]
    codes, names = read_labels(pd.DataFrame({"key": values}), "key", name="obs")
    labels = [None if code < 0 else names[code] for code in codes]
    expected = {"number": ["2.0", None, "1.0", "2.0"]}.get(kind, ["b", None, "a", "b"])
    assert labels == expected
    assert names == (["b", "a"] if kind == "category" else sorted(set(filter(None, expected))))


def test_missing_keys_name_what_there_is(adata):
    with pytest.raises(KeyError, match=r"obs has no column 'nosuch'; columns: \['old'\]"):
        read_labels(adata.obs, "nosuch", name="obs")
    with pytest.raises(KeyError, match=r"no 'nosuch'; keys: \['spatial'\]"):
        read_coordinates(adata, "nosuch")


def test_coordinates_must_be_finite_and_two_or_three(adata):
    np.testing.assert_array_equal(read_coordinates(adata, "spatial"), np.arange(8.0).reshape(4, 2))
    adata.obsm["four"] = np.ones((4, 4))
    with pytest.raises(ValueError, match=r"2 or 3 columns, found shape \(4, 4\)"):
        read_coordinates(adata, "four")
    adata.obsm["spatial"][2, 0] = np.nan
    with pytest.raises(ValueError, match=r"1 bad rows, first: \['c'\]"):
        read_coordinates(adata, "spatial")


def test_numbers_must_be_positive_where_asked():
    frame = pd.DataFrame({"n": [1, 0, 2]}, index=list("abc"))
    np.testing.assert_array_equal(read_numbers(frame, "n", name="obs"), [1, 0, 2])
    with pytest.raises(ValueError, match="positive finite numbers.*at 'b'"):
        read_numbers(frame, "n", name="obs", positive=True)


def test_names_for_h5ad_stay_unique():
    with pytest.warns(UserWarning, match="L2/3"):
        assert storable_names(["L2/3", "L2|3", "x"]) == ["L2|3_", "L2|3", "x"]


def test_results_are_written_into_a_view(adata):
    view = adata[:2]
    write_results(view, obs={"new": np.array([1.0, 2.0])}, obsm={"m": np.ones((2, 3))}, uns={"u": {"a": 1}})
    assert not view.is_view
    assert view.obs["new"].tolist() == [1.0, 2.0]
    assert "new" not in adata.obs


@pytest.mark.parametrize(
    "fields",
    [
        {"obs": {"old": np.zeros(4)}, "obsm": {"m": np.ones((3, 2))}},
        {"obs": {"old": np.zeros(4)}, "layers": {"l": np.ones((4, 4))}},
        {"obs": {"old": np.zeros(4)}, "obsm": {"m": pd.DataFrame({"a/b": np.ones(4)}, index=list("abcd"))}},
        {"obs": {"old": np.zeros(4)}, "obsm": {"m": pd.DataFrame({"a": np.ones(4)})}},
        {"obs": {"old": np.zeros(4)}, "var": {"v": [1, 2, 3]}},
    ],
)
def test_nothing_is_written_if_one_result_is_wrong(adata, fields):
    with pytest.raises(ValueError, match="m|l|v"):
        write_results(adata, **fields)
    assert adata.obs["old"].tolist() == [1, 2, 3, 4]
    assert set(adata.obsm) == {"spatial"}


def test_failure_while_writing_restores_what_was_there(adata):
    class Broken(dict):
        def items(self):
            yield "good", np.zeros(4)
            raise RuntimeError("disk full")

    broken = Broken(good=np.zeros(4))
    calls = []
    original_items = broken.items

    def items_once_checked():
        calls.append(1)
        return iter([("good", np.zeros(4))]) if len(calls) == 1 else original_items()

    broken.items = items_once_checked
    with pytest.raises(RuntimeError, match="disk full"):
        write_results(adata, obs={"old": np.zeros(4)}, obsm=broken)
    assert adata.obs["old"].tolist() == [1, 2, 3, 4]
    assert "good" not in adata.obsm


def test_record_survives_h5ad_and_zarr(adata, tmp_path):
    record = make_record(
        {"none": None, "flag": True, "number": np.int64(3), "names": ("a", "b"), "rng": np.random.default_rng(0),
         "nested/key": {"deep": 1.5}},
        {"history": {"loss": np.arange(3.0)}, "converged": True},
    )  # fmt: skip
    write_results(adata, uns={"result": record})
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        params = back.uns["result"]["params"]
        assert set(params) == {"flag", "number", "names", "rng", "nested|key"}
        assert list(params["names"]) == ["a", "b"]
        assert params["rng"] == "Generator"
        assert float(params["nested|key"]["deep"]) == 1.5
        np.testing.assert_array_equal(back.uns["result"]["report"]["history"]["loss"], [0, 1, 2])
        assert set(back.uns["result"]["version"]) == {"diffbio_sc", "jax", "anndata", "numpy"}


@pytest.mark.parametrize("key", ["spatial_genes", "a b", "µ.1", "..a"])
def test_keys_that_files_hold_pass(key, adata, tmp_path):
    assert check_key(key) == key
    write_results(adata, uns={key: {"a": 1}}, obsm={key: np.ones((4, 2), np.float32)}, var={key: np.zeros(3)})
    for name, read in (("h5ad", ad.read_h5ad), ("zarr", ad.read_zarr)):
        path = tmp_path / f"stored.{name}"
        getattr(adata, f"write_{name}")(path)
        again = read(path)
        assert key in again.uns
        assert key in again.obsm
        assert key in again.var


@pytest.mark.parametrize("key", ["run1/decon", "/a", "a\\b", "a\0", "", " ", ".", ".."])
def test_keys_that_files_cannot_hold_are_refused(key, adata):
    with pytest.raises(ValueError, match="key_added must .*h5ad and zarr"):
        check_key(key)
    for field, value in (("uns", {}), ("obs", np.zeros(4)), ("layers", np.zeros((4, 3)))):
        with pytest.raises(ValueError, match=f"keys of adata.{field} must"):
            write_results(adata, obsm={"good": np.zeros((4, 1))}, **{field: {key: value}})
    assert "good" not in adata.obsm


def test_keys_that_are_no_text_are_refused():
    with pytest.raises(TypeError, match="key must be a text, found 3"):
        check_key(3, "key")


def test_pairwise_results_are_checked_and_written(adata):
    write_results(adata, obsp={"near": np.eye(4)}, varp={"map": np.eye(3)})
    assert adata.obsp["near"].shape == (4, 4)
    assert adata.varp["map"].shape == (3, 3)
    with pytest.raises(ValueError, match=r"varp\['map'\] must have shape \(3, 3\), found shape \(4, 4\)"):
        write_results(adata, varp={"map": np.eye(4)})
