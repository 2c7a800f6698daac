from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio
from diffbio_sc._anndata.cell_batches import read_batches
from diffbio_sc._anndata.modalities import read_known_modalities, read_modalities
from diffbio_sc._anndata.modality_results import write_modality_results
from diffbio_sc.blocks.row_store import RowStore

RNA = [f"gene{i}" for i in range(12)]
ATAC = [f"peak{i}" for i in range(20)]


def part(cells, features, seed=0, scale=3.0):
    counts = np.random.default_rng(seed).poisson(scale, (len(cells), len(features))).astype(np.float32)
    counts[:, 0] += 1  # no cell is empty
    return ad.AnnData(sp.csr_matrix(counts), obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=features))


def mosaic():
    """Cells c0 ... c29: RNA in the first 20, ATAC in the last 20, in another order."""
    cells = [f"c{i}" for i in range(30)]
    return md.MuData({"rna": part(cells[:20], RNA), "atac": part(cells[:9:-1], ATAC, 1, 0.4)})


def paired():
    cells = [f"c{i}" for i in range(24)]
    return md.MuData({"rna": part(cells, RNA), "atac": part(cells, ATAC, 1, 0.4)})


def union(mdata, name):
    """Brute force: cell by cell."""
    modality = mdata[name]
    dense = np.zeros((mdata.n_obs, modality.n_vars))
    for row, cell in enumerate(mdata.obs_names):
        if cell in modality.obs_names:
            dense[row] = np.asarray(modality[cell].X.todense()).ravel()
    return dense


def test_mosaic_is_read_cell_by_cell():
    mdata = mosaic()
    read = read_modalities(mdata)
    assert read.names == ["rna", "atac"]
    for index, name in enumerate(read.names):
        matrix = read.matrices[index]
        assert matrix.format == "csr"
        assert matrix.dtype == np.float32
        assert matrix.has_canonical_format
        np.testing.assert_array_equal(matrix.toarray(), union(mdata, name))
        np.testing.assert_array_equal(read.present[:, index], mdata.obs_names.isin(mdata[name].obs_names))
        assert read.features[index].equals(mdata[name].var_names)
    assert read.likelihoods == ["negative_binomial", "multinomial"]


def test_order_of_the_cells_in_a_modality_does_not_matter():
    mdata = paired()
    order = np.random.default_rng(0).permutation(24)
    shuffled = md.MuData({"rna": mdata["rna"].copy(), "atac": mdata["atac"][order].copy()})
    left, right = read_modalities(mdata), read_modalities(shuffled)
    for one, other in zip(left.matrices, right.matrices, strict=True):
        np.testing.assert_array_equal(one.toarray(), other.toarray())


@pytest.mark.parametrize(
    "kind",
    ["dense", "csc", "layer", "view", "backed", "zeros", "unsorted", "dask"],
)
def test_input_kinds_give_the_same_matrices(tmp_path, kind):
    expected = read_modalities(mosaic())
    mdata = mosaic()
    options = {}
    if kind == "backed":
        mdata.write_h5mu(tmp_path / "m.h5mu")
        mdata = md.read_h5mu(tmp_path / "m.h5mu", backed="r")
    elif kind == "view":
        mdata = md.MuData({name: ad.concat([p, part(["z1", "z2"], p.var_names)]) for name, p in mdata.mod.items()})
        mdata = mdata[~mdata.obs_names.isin(["z1", "z2"])]
        assert mdata.is_view
    else:
        for modality in mdata.mod.values():
            counts = modality.X
            if kind == "dense":
                modality.X = counts.toarray()
            elif kind == "csc":
                modality.X = sp.csc_matrix(counts)
            elif kind == "layer":
                modality.layers["counts"] = counts
                modality.X = counts.copy()
                modality.X.data = np.log1p(modality.X.data)
                options = {"layers": {"rna": "counts", "atac": "counts"}}
            elif kind == "zeros":
                entries = counts.tocoo()
                modality.X = sp.csr_matrix(counts.toarray() * 0 + 1)
                modality.X.data[:] = counts.toarray().ravel()  # every zero stored
                assert modality.X.nnz > entries.nnz
            elif kind == "unsorted":
                modality.X = sp.csr_matrix(counts[:, ::-1])[:, ::-1]
                modality.X.has_sorted_indices = False
            elif kind == "dask":
                da = pytest.importorskip("dask.array")
                modality.X = da.from_array(counts.toarray(), chunks=(7, 5))
            else:
                modality.X = counts.astype(kind)
    before = None if kind in ("backed", "dask", "dense", "view") else mdata["rna"].X.copy()
    read = read_modalities(mdata, **options)
    for one, other in zip(expected.matrices, read.matrices, strict=True):
        assert isinstance(other, RowStore) == (kind in ("backed", "dask"))
        other = other.to_memory() if isinstance(other, RowStore) else other
        assert other.dtype == np.float32
        np.testing.assert_array_equal(one.indptr, other.indptr)
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_array_equal(read.present, expected.present)
    assert read.likelihoods == expected.likelihoods
    if before is not None:  # nothing of the user's is changed, stored zeros included
        np.testing.assert_array_equal(mdata["rna"].X.data, before.data)


KINDS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]


@pytest.mark.parametrize("dense", [False, True])
def test_every_type_of_number_gives_the_same_matrices(dense):
    expected = read_modalities(mosaic())
    for kind in KINDS:
        mdata = mosaic()
        for modality in mdata.mod.values():
            if not dense and kind == "float16":
                continue  # scipy has no sparse matrices of it
            modality.X = modality.X.toarray().astype(kind) if dense else modality.X.astype(kind)
        read = read_modalities(mdata)
        for one, other in zip(expected.matrices, read.matrices, strict=True):
            assert other.dtype == np.float32
            np.testing.assert_array_equal(one.toarray(), other.toarray(), err_msg=kind)
        assert read.likelihoods == expected.likelihoods
    binary, truth = paired(), paired()
    for mdata, kind in ((binary, bool), (truth, np.float64)):
        for modality in mdata.mod.values():
            values = modality.X.toarray() > 0
            modality.X = values.astype(kind) if dense else sp.csr_matrix(values.astype(kind))
    for one, other in zip(read_modalities(truth).matrices, read_modalities(binary).matrices, strict=True):
        np.testing.assert_array_equal(one.toarray(), other.toarray())
    complex_values = paired()
    complex_values["rna"].X = complex_values["rna"].X.toarray().astype(np.complex64)
    with pytest.raises(ValueError, match=r"mdata\['rna'\].X must hold real numbers, found dtype complex64"):
        read_modalities(complex_values)


def renamed(change):
    """Modalities of the same cells, whose names in the second were changed."""
    cells = [f"AAC{i}-1" for i in range(24)]
    return md.MuData({"rna": part(cells, RNA), "atac": part([change(name) for name in cells], ATAC, 1, 0.4)})


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda name: name[:-2], r"They match without the number at the end \('-1'\)"),
        (lambda name: f"sample_{name}", "They match without what stands before the last '_'"),
        (str.lower, "They match without upper and lower case"),
        (lambda name: f"other{name[3:]}", r"Embed each alone with modalities=\['rna'\]"),
    ],
)
def test_modalities_that_share_no_cell_are_refused_with_names_of_both(change, hint):
    mdata = renamed(change)
    with pytest.raises(
        ValueError, match=r"No cell has both 'rna' and 'atac'.*'AAC0-1'.*of 'atac': \['" + change("AAC0-1")
    ):
        read_modalities(mdata)
    with pytest.raises(ValueError, match=hint):
        read_modalities(mdata)


def test_a_third_modality_links_two_that_share_no_cell():
    cells = [f"c{i}" for i in range(30)]
    parts = {"rna": part(cells[:20], RNA), "atac": part(cells[20:], ATAC, 1), "adt": part(cells[10:], RNA[:6], 2)}
    assert read_modalities(md.MuData(parts)).present.sum() == 50
    del parts["adt"]
    with pytest.raises(ValueError, match="No cell has both 'rna' and 'atac'"):
        read_modalities(md.MuData(parts))


def test_few_cells_with_two_modalities_give_a_warning():
    cells = [f"c{i}" for i in range(99)]
    mdata = md.MuData({"rna": part(cells[:50], RNA), "atac": part(cells[49:], ATAC, 1)})
    with pytest.warns(UserWarning, match="Only 1 of 99 cells have more than one modality"):
        read_modalities(mdata)


def test_known_modalities_need_no_cell_with_two():
    """New cells of a fitted model: the model knows how its modalities go together."""
    mdata = renamed(lambda name: name[:-2])
    options = {"names": ["rna", "atac"], "features": [pd.Index(RNA), pd.Index(ATAC)]}
    read = read_known_modalities(mdata, likelihoods=["negative_binomial", "multinomial"], **options)
    assert read.present.sum(1).max() == 1


def test_counts_of_a_fitted_model_are_asked_for_without_arguments_of_the_fit():
    mdata = paired()
    mdata["rna"].X.data = np.log1p(mdata["rna"].X.data)
    options = {"names": ["rna", "atac"], "features": [pd.Index(RNA), pd.Index(ATAC)]}
    with pytest.raises(ValueError, match=r"raw counts.*fitted to counts of 'rna' \(negative_binomial\)") as caught:
        read_known_modalities(mdata, likelihoods=["negative_binomial", "multinomial"], **options)
    assert "likelihoods=" not in str(caught.value)


def test_feature_types_of_an_anndata_are_modalities():
    mdata = paired()
    whole = ad.concat([mdata["rna"], mdata["atac"]], axis=1)
    whole.var["feature_types"] = ["Gene Expression"] * 12 + ["Peaks"] * 20
    whole = whole[:, np.random.default_rng(0).permutation(32)].copy()  # in any order
    read, expected = read_modalities(whole), read_modalities(mdata)
    assert read.names == ["Gene Expression", "Peaks"]
    assert read.likelihoods == expected.likelihoods
    for index, name in enumerate(["rna", "atac"]):
        column = read.features[index].get_indexer(mdata[name].var_names)
        np.testing.assert_array_equal(read.matrices[index].toarray()[:, column], expected.matrices[index].toarray())


def test_modalities_are_chosen_by_name():
    assert read_modalities(paired(), modalities=["atac"]).names == ["atac"]
    assert read_modalities(paired(), modalities="rna").names == ["rna"]


def test_likelihoods_are_said_aloud_and_overridden(capsys):
    with dbio.settings.override(verbosity="info"):
        read = read_modalities(paired(), likelihoods={"atac": "poisson"})
    assert read.likelihoods == ["negative_binomial", "poisson"]
    assert "rna: negative_binomial likelihood" in capsys.readouterr().err


def test_normalised_values_are_gaussian_with_a_warning():
    mdata = paired()
    mdata["rna"].X.data = np.log1p(mdata["rna"].X.data)
    with pytest.warns(UserWarning, match=r"X holds normalised values, not counts.* modelled as Gaussian"):
        assert read_modalities(mdata).likelihoods[0] == "gaussian"
    mdata["rna"].X.data -= 1.0
    assert read_modalities(mdata, likelihoods={"rna": "gaussian"}).likelihoods[0] == "gaussian"


def test_normalised_values_without_zeros_are_read_as_they_are():
    mdata = paired()
    values = np.random.default_rng(0).normal(size=mdata["rna"].shape).astype(np.float32)
    mdata["rna"].X = values
    read = read_modalities(mdata, likelihoods={"rna": "gaussian"})
    assert np.shares_memory(read.matrices[0], mdata["rna"].X)
    part = md.MuData({"rna": mdata["rna"][5::-1].copy(), "atac": mdata["atac"].copy()})
    with pytest.raises(ValueError, match="has 6 cells"):
        read_modalities(part, likelihoods={"rna": "gaussian"})
    part = md.MuData({"rna": mdata["rna"][11::-1].copy(), "atac": mdata["atac"].copy()})
    placed = read_modalities(part, likelihoods={"rna": "gaussian"}).matrices[0]
    expected = pd.DataFrame(values[:12], mdata.obs_names[:12]).reindex(part.obs_names).fillna(0.0)
    np.testing.assert_array_equal(placed, expected)


def test_cells_without_counts_lack_the_modality():
    mdata = paired()
    counts = mdata["atac"].X.toarray()
    counts[[2, 5]] = 0
    mdata["atac"].X = sp.csr_matrix(counts)
    with pytest.warns(UserWarning, match=r"2 cells have no counts in modality 'atac'.*\['c2', 'c5'\]"):
        read = read_modalities(mdata)
    np.testing.assert_array_equal(np.flatnonzero(~read.present[:, 1]), [2, 5])
    assert read.present[:, 0].all()


def spoil(mdata, value, name="rna"):
    mdata[name].X = mdata[name].X.toarray()
    mdata[name].X[3, 4] = value


def bad_duplicated_cells(mdata):
    mdata["rna"].obs_names = ["c0", "c0", *mdata["rna"].obs_names[2:]]


def bad_duplicated_features(mdata):
    mdata["atac"].var_names = ["peak0", "peak0", *mdata["atac"].var_names[2:]]


def bad_stale(mdata):
    mdata["atac"].obs_names = [f"x{name}" for name in mdata["atac"].obs_names]


def bad_empty(mdata):
    mdata["atac"].X = sp.csr_matrix(mdata["atac"].shape, dtype=np.float32)


def with_counts_in_layer(mdata):
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    mdata["rna"].X.data = np.log1p(mdata["rna"].X.data)


@pytest.mark.filterwarnings("ignore:.*no counts in modality:UserWarning", "ignore:Observation names:UserWarning")
@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda m: spoil(m, np.nan), {}, ValueError, r"mdata\['rna'\].X .*finite.*'c3'.*'gene4'"),
        (lambda m: spoil(m, np.inf), {"likelihoods": {"rna": "gaussian"}}, ValueError, "finite"),
        (lambda m: spoil(m, -1), {}, ValueError, "raw counts, found negative values .*'c3'.*'gene4'"),
        (lambda m: spoil(m, 0.5), {}, ValueError, "raw counts, found non-integer values"),
        (lambda m: spoil(m, 0.5), {"likelihoods": {"rna": "poisson"}}, ValueError, "raw counts, found non-integer"),
        (with_counts_in_layer, {}, ValueError, r"Counts are elsewhere: pass layers=\{'rna': 'counts'\}"),
        (bad_duplicated_cells, {}, ValueError, "obs_names of modality 'rna' must be unique.*'c0'"),
        (bad_duplicated_features, {}, ValueError, "var_names of modality 'atac' must be unique.*'peak0'"),
        (bad_stale, {}, ValueError, r"24 cells of modality 'atac' are not in mdata.obs_names.*mdata.update\(\)"),
        (bad_empty, {}, ValueError, "Modality 'atac' has 0 cells with counts"),
        (None, {"modalities": ["rna", "adt"]}, KeyError, r"no modality \['adt'\]; it has \['rna', 'atac'\]"),
        (None, {"modalities": []}, ValueError, "at least one of"),
        (None, {"modalities": ["rna", "rna"]}, ValueError, "modalities must be unique"),
        (None, {"likelihoods": {"rna": "nb"}}, ValueError, r"unknown names \{'rna': 'nb'\}.*negative_binomial"),
        (None, {"likelihoods": {"adt": "poisson"}}, KeyError, r"likelihoods names \['adt'\]"),
        (None, {"layers": {"rna": "raw"}}, KeyError, r"mdata\['rna'\].layers has no 'raw'"),
        (None, {"layers": ["raw"]}, TypeError, "layers must be a dict by modality"),
    ],
)
def test_bad_values_are_refused(change, options, error, message):
    mdata = paired()
    if change is not None:
        change(mdata)
    with pytest.raises(error, match=message):
        read_modalities(mdata, **options)


def test_bad_objects_are_refused():
    cells = [f"c{i}" for i in range(24)]
    with pytest.raises(TypeError, match="MuData or an AnnData, found DataFrame"):
        read_modalities(pd.DataFrame())
    with pytest.raises(ValueError, match="no column 'feature_types'"):
        read_modalities(part(cells, RNA))
    with pytest.raises(ValueError, match="Modality 'atac' has 1 features, at least 2"):
        read_modalities(md.MuData({"rna": part(cells, RNA), "atac": part(cells, ["peak"])}))
    with pytest.raises(ValueError, match="at least 10 cells, mdata has 6"):
        read_modalities(paired()[:6])
    with pytest.raises(ValueError, match="Modality 'atac' has 4 cells with counts"):
        read_modalities(md.MuData({"rna": part(cells, RNA), "atac": part(cells[:4], ATAC)}))
    with pytest.raises(ValueError, match=r"10 cells have none of the modalities \['rna'\].*'c29'"):
        read_modalities(mosaic(), modalities=["rna"])
    with pytest.raises(ValueError, match="mdata has no modality"):
        read_modalities(md.MuData({}))
    features = md.MuData({"a": part(cells, RNA), "b": part([f"d{i}" for i in range(24)], RNA)}, axis=1)
    with pytest.raises(ValueError, match="axis=1"):
        read_modalities(features)
    whole = part(cells, RNA)
    whole.var["feature_types"] = ["Peaks"] * 11 + [None]
    with pytest.raises(ValueError, match="missing for 1: .*'gene11'"):
        read_modalities(whole)


def test_known_features_are_found_by_name():
    mdata = mosaic()
    names, features = ["rna", "atac"], [mdata["rna"].var_names, mdata["atac"].var_names]
    options = {"names": names, "features": features, "likelihoods": ["negative_binomial", "multinomial"]}
    expected = read_modalities(mdata)
    order = np.random.default_rng(0).permutation(12)
    rna = ad.concat([mdata["rna"][:, order], part(mdata["rna"].obs_names, ["other1", "other2"])], axis=1)
    shuffled = md.MuData({"rna": rna, "atac": mdata["atac"].copy()})
    read = read_known_modalities(shuffled[mdata.obs_names], **options)
    np.testing.assert_array_equal(read.matrices[0].toarray(), expected.matrices[0].toarray())
    assert read.matrices[0].has_canonical_format

    fewer = md.MuData({"rna": mdata["rna"][:, :7].copy(), "atac": mdata["atac"].copy()})
    with pytest.warns(UserWarning, match="lacks 5 of the 12 features"):
        read = read_known_modalities(fewer, **options)
    np.testing.assert_array_equal(read.matrices[0].toarray()[:, :7], expected.matrices[0].toarray()[:, :7])
    assert not read.matrices[0].toarray()[:, 7:].any()

    few = md.MuData({"rna": mdata["rna"][:, :5].copy(), "atac": mdata["atac"].copy()})
    with pytest.raises(ValueError, match="5 of the 12 features of the model, at least half"):
        read_known_modalities(few, **options)

    alone = read_known_modalities(md.MuData({"rna": mdata["rna"].copy()}), **options)
    assert alone.matrices[1].shape == (20, 20)
    assert not alone.present[:, 1].any()
    with pytest.raises(ValueError, match="none of the modalities of the model"):
        read_known_modalities(md.MuData({"adt": mdata["rna"].copy()}), **options)


def test_batches_of_the_modalities_are_joined():
    mdata = mosaic()
    mdata["rna"].obs["batch"] = pd.Categorical(["x"] * 10 + ["y"] * 10)
    mdata["atac"].obs["batch"] = ["z" if int(name[1:]) >= 20 else "y" for name in mdata["atac"].obs_names]
    codes, names = read_batches(mdata, "batch")
    assert names == ["x", "y", "z"]
    np.testing.assert_array_equal(
        codes[mdata.obs_names.get_indexer([f"c{i}" for i in range(30)])], np.repeat([0, 1, 2], 10)
    )
    mdata["atac"].obs["batch"] = "z"
    with pytest.raises(ValueError, match=r"disagree in their column 'batch' about 10 cells: 'c1\d' is 'y'"):
        read_batches(mdata, "batch")


def test_bad_batches_are_refused():
    mdata = paired()
    with pytest.raises(KeyError, match="mdata.obs has no column 'batch'"):
        read_batches(mdata, "batch")
    mdata.obs["batch"] = ["a"] * 23 + [None]
    with pytest.raises(ValueError, match=r"mdata.obs\['batch'\] must name a batch .* missing for 1: \['c23'\]"):
        read_batches(mdata, "batch")
    mdata.obs["batch"] = ["a"] * 23 + ["b"]
    with pytest.warns(UserWarning, match=r"single cell.*\['b'\]"):
        read_batches(mdata, "batch")
    other = mosaic()
    for name in ("rna", "atac"):
        other[name].obs["batch"] = "a"
    other.pull_obs("batch", join_common=False)
    with pytest.raises(ValueError, match="column of modality 'rna' alone: batch_key='batch' joins"):
        read_batches(other, "rna:batch")


def test_writing_is_all_or_nothing():
    mdata = mosaic()
    mdata["rna"].obsm["X"] = np.ones((20, 1))
    bad = {"obs": {"weight": np.zeros(29)}}
    new = {"rna": {"X": np.zeros((20, 2))}, "atac": {"X": np.zeros((20, 2))}}
    with pytest.raises(ValueError, match="must have 30 rows"):
        write_modality_results(mdata, **bad, modality_obsm=new)
    assert mdata["rna"].obsm["X"].shape == (20, 1)
    assert "X" not in mdata["atac"].obsm
    with pytest.raises(ValueError, match="must have 20 rows"):
        write_modality_results(mdata, modality_obsm={"rna": new["rna"], "atac": {"X": np.zeros((3, 2))}})
    assert mdata["rna"].obsm["X"].shape == (20, 1)
    write_modality_results(mdata, obs={"weight": np.zeros(30)}, uns={"record": {"a": 1}}, modality_obsm=new)
    assert mdata["rna"].obsm["X"].shape == (20, 2)
    assert mdata.uns["record"] == {"a": 1}


def test_writing_into_a_view_leaves_the_parent_alone():
    mdata = mosaic()
    view = mdata[:12]
    with pytest.raises(ValueError, match="rows"):
        write_modality_results(view, obs={"weight": np.zeros(11)})
    assert view.is_view
    write_modality_results(view, obs={"weight": np.zeros(12)}, modality_obsm={"rna": {"X": np.zeros((12, 2))}})
    assert "weight" in view.obs
    assert "weight" not in mdata.obs
    assert "X" not in mdata["rna"].obsm
