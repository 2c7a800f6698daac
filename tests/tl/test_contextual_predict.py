"""New regions, new cell types, models in files."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio

FAST = {"refine": False, "average": False}


@pytest.fixture(scope="module")
def data():
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=600, n_cell_types=5, width=60, rng=2)
    dbio.pp.sequences(adata)
    return adata


@pytest.fixture(scope="module")
def trained(data):
    """Of the first four cell types, with all parts of the model."""
    adata = data[:4].copy()
    dbio.tl.contextual(adata, max_epochs=1)
    return adata


def test_the_same_regions_get_the_same_prediction(trained):
    again = trained.copy()
    del again.layers["contextual_logit"]
    dbio.tl.contextual_predict(again, key_added="again")
    np.testing.assert_allclose(again.layers["again_logit"], trained.layers["contextual_logit"], atol=1e-5)
    assert list(again.uns["again_prediction"]["report"]["seen_cell_types"]) == list(trained.obs_names)
    assert len(again.uns["again_prediction"]["report"]["new_cell_types"]) == 0


def test_model_of_an_object_a_file_and_a_model(tmp_path, data, trained):
    dbio.io.write_contextual_model(trained, tmp_path / "model.npz")
    trained.write_h5ad(tmp_path / "a.h5ad")
    trained.write_zarr(tmp_path / "a.zarr")
    read = dbio.io.read_contextual_model(tmp_path / "model.npz")
    assert (read.cell_types, read.width, read.mode, read.kind) == (list(trained.obs_names), 60, "tf_context", "regions")
    assert read.context.factors == list(trained.obsm["tf_context"].columns)
    results = []
    for model in (
        trained,
        tmp_path / "model.npz",
        str(tmp_path / "model.npz"),
        read,
        anndata.read_h5ad(tmp_path / "a.h5ad"),
        anndata.read_zarr(tmp_path / "a.zarr"),
    ):
        new = data[:, ::7].copy()
        dbio.tl.contextual_predict(new, model=model)
        results.append(new.layers["contextual_logit"])
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_allclose(results[0][:4], trained.layers["contextual_logit"][:, ::7], atol=1e-5)
    dbio.io.write_contextual_model(read, tmp_path / "again.npz")
    again = dbio.tl.contextual_predict(data, model=tmp_path / "again.npz", copy=True)
    np.testing.assert_array_equal(again.layers["contextual_logit"][:, ::7], results[0])
    assert "contextual_logit" not in data.layers


def test_files_that_are_no_models(tmp_path, data, trained):
    with pytest.raises(FileNotFoundError):
        dbio.io.read_contextual_model(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(ValueError, match="is not a file of dbio.io.write_contextual_model"):
            dbio.io.read_contextual_model(tmp_path / name)
    dbio.io.write_contextual_model(trained, tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as file:
        arrays = dict(file)
    header = json.loads(str(arrays["header"]))
    np.savez(tmp_path / "newer.npz", **{**arrays, "header": np.array(json.dumps({**header, "format": 99}))})
    with pytest.raises(ValueError, match="has format 99, this version reads up to format 1"):
        dbio.io.read_contextual_model(tmp_path / "newer.npz")
    lacking = {name: value for name, value in arrays.items() if name != "arrays/start_weights"}
    np.savez(tmp_path / "cut.npz", **lacking)
    with pytest.raises(ValueError, match="array 'start_weights' is missing"):
        dbio.tl.contextual_predict(data, model=tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError, match="no folder"):
        dbio.io.write_contextual_model(trained, tmp_path / "nowhere" / "model.npz")
    with pytest.raises(KeyError, match="no model under 'contextual'"):
        dbio.io.write_contextual_model(data, tmp_path / "x.npz")
    with pytest.raises(TypeError, match="model must be .*an AnnData"):
        dbio.tl.contextual_predict(data, model=3)


def test_new_cell_type_is_made_of_those_that_express_alike(data, trained):
    new = data[[4, 1]].copy()
    new.X = None  # only expression is known
    dbio.tl.contextual_predict(new, model=trained)
    report = new.uns["contextual_prediction"]["report"]
    assert list(report["new_cell_types"]) == ["cell5"]
    assert list(report["seen_cell_types"]) == ["cell2"]
    trained_z = trained.obsm["tf_context"].to_numpy(np.float64)
    score = (trained_z - trained_z.mean(0)) / trained_z.std(0)
    mine = (data.obsm["tf_context"].to_numpy(np.float64)[4] - trained_z.mean(0)) / trained_z.std(0)
    cosine = score @ mine / np.linalg.norm(score, axis=1) / np.linalg.norm(mine)
    assert report["nearest"]["cell5"] == trained.obs_names[cosine.argmax()]
    np.testing.assert_allclose(report["similarity"]["cell5"], cosine.max(), atol=1e-6)
    # A weighted mean of the trained cell types' predictions.
    weights = np.linalg.lstsq(trained.layers["contextual_logit"].T, new.layers["contextual_logit"][0], rcond=None)[0]
    np.testing.assert_allclose(
        weights @ trained.layers["contextual_logit"], new.layers["contextual_logit"][0], atol=1e-3
    )
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-2)
    assert weights.argmax() == cosine.argmax()


def test_copy_of_a_trained_cell_type_under_another_name(data, trained):
    new = data[:1].copy()
    new.obs_names = ["twin"]
    dbio.tl.contextual_predict(new, model=trained)
    report = new.uns["contextual_prediction"]["report"]
    assert report["nearest"]["twin"] == "cell1"
    np.testing.assert_allclose(report["similarity"]["twin"], 1, atol=1e-6)
    softness = trained.uns["contextual"]["report"]["unseen_cells"]["softness"]
    if softness == 0:
        np.testing.assert_allclose(new.layers["contextual_logit"][0], trained.layers["contextual_logit"][0], atol=1e-5)


def test_missing_and_shuffled_factors(data, trained):
    new = data[4:].copy()
    dbio.tl.contextual_predict(new, model=trained)
    expected = new.layers["contextual_logit"].copy()
    table = new.obsm["tf_context"]
    new.obsm["tf_context"] = table.iloc[:, ::-1].assign(EXTRA=3.0)
    dbio.tl.contextual_predict(new, model=trained)
    np.testing.assert_allclose(new.layers["contextual_logit"], expected, atol=1e-5)
    # A factor that is not there counts as the mean of the trained cell types.
    mean = trained.obsm["tf_context"]["TF3"].astype(np.float64).mean()
    new.obsm["tf_context"] = table.assign(TF3=mean)
    dbio.tl.contextual_predict(new, model=trained)
    expected = new.layers["contextual_logit"].copy()
    new.obsm["tf_context"] = table.drop(columns="TF3")
    with pytest.warns(UserWarning, match=r"1 of 20 factors of the model are not in tf_context: \['TF3'\]"):
        dbio.tl.contextual_predict(new, model=trained)
    np.testing.assert_allclose(new.layers["contextual_logit"], expected, atol=1e-5)
    lower = table.rename(columns=str.lower)
    new.obsm["tf_context"] = lower
    with pytest.raises(ValueError, match="0 of the 20 factors.*'TF1' and 'tf1'"):
        dbio.tl.contextual_predict(new, model=trained)


def test_new_cell_types_that_cannot_be_predicted(data, trained):
    new = data[4:].copy()
    del new.obsm["tf_context"]
    with pytest.raises(KeyError, match="no 'tf_context'"):
        dbio.tl.contextual_predict(new, model=trained)
    new.obsm["tf_context"] = pd.DataFrame(np.nan, index=new.obs_names, columns=trained.obsm["tf_context"].columns)
    with pytest.raises(ValueError, match=r"\['cell5'\] are not the model's.*have no expression"):
        dbio.tl.contextual_predict(new, model=trained)
    plain = data[:4].copy()
    dbio.tl.contextual(plain, mode="sequence_only", **FAST)
    new = data[3:].copy()
    new.obs_names = ["CELL4", "cell5"]
    with pytest.raises(ValueError, match=r"trained without expression.*'CELL4' and 'cell4'"):
        dbio.tl.contextual_predict(new, model=plain)
    assert "contextual_logit" not in new.layers


def test_other_widths_are_refused_or_read_in_the_models(data, trained):
    new = data.copy()
    new.varm["dna"] = data.varm["dna"][:, :40]
    with pytest.raises(ValueError, match=r"sequences of 60 bases, found 40.*width=60"):
        dbio.tl.contextual_predict(new, model=trained)
    chrom = "".join(np.random.default_rng(0).choice(list("ACGT"), 3000))
    table = pd.DataFrame({"chrom": "chrA", "start": [10, 500], "end": [200, 530]}, index=["a", "b"])
    other = anndata.AnnData(np.zeros((2, 2)), obs=pd.DataFrame(index=["cell1", "cell2"]), var=table)
    dbio.tl.contextual_predict(other, model=trained, fasta={"chrA": chrom})
    assert other.varm["dna"].shape == (2, 60)
    from diffbio_sc.genome.sequences import decode

    assert decode(other.varm["dna"]) == [chrom[75:135], chrom[485:545]]
    with pytest.raises(ValueError, match="takes no contacts"):
        dbio.tl.contextual_predict(other, model=trained, contacts="maps")


# Windows


@pytest.fixture(scope="module")
def windows():
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=200, n_cell_types=3, width=128, token=32, rng=1)
    dbio.pp.sequences(adata)
    dbio.tl.contextual(adata, track="track", contacts="contacts", contacts_as="input", max_epochs=1)
    return adata


def test_windows_are_written_along_regions(windows):
    track, logit = windows.varm["contextual_track"], windows.layers["contextual_logit"]
    assert track.shape == (200, 3, 4)
    # A region is active unless all its tokens are not.
    np.testing.assert_allclose(windows.layers["contextual_prob"], 1 - (1 - track).prod(2).T, atol=1e-5)
    assert np.isfinite(logit).all()
    assert windows.uns["contextual"]["contract"]["n_tokens"] == 4
    assert windows.uns["contextual"]["params"]["mode"] == "tf_plus_chromatin"


def test_windows_survive_files_and_take_contacts(tmp_path, windows):
    windows.write_h5ad(tmp_path / "w.h5ad")
    read = anndata.read_h5ad(tmp_path / "w.h5ad")
    expected = windows.varm["contextual_track"]
    dbio.tl.contextual_predict(read, contacts="contacts")
    np.testing.assert_allclose(read.varm["contextual_track"], expected, atol=1e-5)
    with pytest.raises(ValueError, match="takes contacts as an input"):
        dbio.tl.contextual_predict(read)
    with pytest.raises(ValueError, match="takes no neighbourhood"):
        dbio.tl.contextual_predict(read, contacts="contacts", neighbourhood=True)
    dbio.tl.attributions(read, regions=[3], contacts="contacts", method="input_x_gradient")
    dbio.tl.attributions(read, regions=[3], contacts="contacts", key_added="ism")
    one, other = (read.uns[key]["scores"].ravel() for key in ("attributions", "ism"))
    assert one.shape == other.shape == (3 * 128 * 4,)
    assert np.isfinite(one).all()
    new = read[[2]].copy()
    new.obs_names = ["new"]
    dbio.tl.contextual_predict(new, model=read, contacts="contacts")
    np.testing.assert_allclose(new.varm["contextual_track"][:, 0], expected[:, 2], atol=1e-4)


def test_bad_tracks_and_maps(windows):
    def refused(message, *, track=None, contacts=None, error=ValueError):
        adata = windows.copy()
        if track is not None:
            adata.varm["track"] = track
        if contacts is not None:
            adata.varm["contacts"] = contacts
        with pytest.raises(error, match=message):
            dbio.tl.contextual(adata, track="track", contacts="contacts", max_epochs=1)

    track, maps = windows.varm["track"].astype(np.float32), windows.varm["contacts"]
    refused("must have shape .regions, 3 cell types, tokens", track=track[:, :2])
    refused("has 1 tokens; a window needs at least two", track=track[:, :, :1])
    refused("5 tokens, which do not divide the 128 bases", track=np.zeros((200, 3, 5)))
    refused("found 2 at region .*cell type 0, token 0", track=track * 0 + 2)
    partly = track.copy()
    partly[0, 0, 0] = np.nan
    refused("must be known, found NaN in 1 of 2400 values", track=partly)
    refused("must have shape .200, 4, 4., a map of the tokens", contacts=maps[:, :2, :2])
    refused("must not be negative", contacts=-maps)
    refused("values up to 3: divide counts by those expected", contacts=3 * maps)
    uneven = maps.copy()
    uneven[5, 0, 3] += 0.05
    refused("must be symmetric.*tokens 0 and 3", contacts=uneven)
    refused("must not be negative or infinite", contacts=np.where(maps > 0.95, np.inf, maps))


def test_maps_with_half_a_triangle_missing_bins_and_rounding(windows):
    from diffbio_sc._anndata.region_axis import read_region_axis
    from diffbio_sc.tl._contextual_input import read_maps

    adata, maps = windows.copy(), windows.varm["contacts"]
    regions = read_region_axis(adata)
    for given in (np.triu(maps), maps + np.triu(np.full((4, 4), 1e-6, np.float32), 1) * (maps < 0.99)):
        adata.varm["contacts"] = given
        found = read_maps(adata, regions, "contacts", (200, 4))
        np.testing.assert_allclose(found, maps, atol=1e-6)
        np.testing.assert_array_equal(found, found.transpose(0, 2, 1))
    masked = maps.copy()
    masked[:, 1] = masked[:, :, 1] = np.nan
    adata.varm["contacts"] = masked
    found = read_maps(adata, regions, "contacts", (200, 4))
    assert (found[:, 1] == 0).all()
    np.testing.assert_array_equal(found[:, 2, 3], maps[:, 2, 3])
