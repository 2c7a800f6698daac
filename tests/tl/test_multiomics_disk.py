"""The multi-omics VAE on cells that are not in memory: read once, trained on in parts, the same result."""

from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from compiled_programs import compiled_programs
from flax import nnx
from scipy.spatial import cKDTree

import diffbio_sc as dbio
from diffbio_sc.blocks.row_store import RowStore
from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig
from diffbio_sc.operators.multiomics.multiomics_vae import fitting, streaming

pytest.importorskip("dask.array")
pytest.importorskip("distributed")
lazy_blocks = pytest.importorskip("lazy_blocks", exc_type=ImportError)

CELLS, CHUNK, EPOCHS = 1200, 100, 3


def counts():
    """Cells of three types, sorted by type: neighbours in the file are alike."""
    rng = np.random.default_rng(0)
    kinds = np.sort(rng.integers(0, 3, CELLS))
    place = np.column_stack([kinds == 0, kinds == 1, rng.normal(size=CELLS)]).astype(float)
    found = {}
    for name, size in (("rna", 60), ("atac", 50)):
        rates = np.exp(place @ rng.normal(0, 0.7, (3, size)) - 0.7)
        found[name] = rng.poisson(rates).astype(np.float32)
    found["atac"][::7] = 0
    return found, kinds


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 256 cells: five of them."""
    monkeypatch.setattr(streaming, "_FEWEST_ROWS", 256)
    monkeypatch.setattr(streaming, "_MOST_ROWS", 256)


@pytest.fixture(scope="module")
def between_seeds(expected):
    """Neighbours that two trainings in memory have in common."""
    other = fitted(as_mudata(counts()[0]), seed=1)
    return shared_neighbours(other.obsm["X_multiomics_vae"], expected.obsm["X_multiomics_vae"])


@pytest.fixture(scope="module")
def expected():
    """Training in memory."""
    return fitted(as_mudata(counts()[0]))


def as_mudata(values, matrix=sp.csr_matrix):
    """A MuData in which cells without ATAC are left out of it."""
    names = np.array([f"cell_{i}" for i in range(CELLS)])
    parts = {}
    for name, array in values.items():
        kept = np.arange(CELLS) if name == "rna" else np.flatnonzero(array.sum(1))
        var = pd.DataFrame(index=[f"{name}_{i}" for i in range(array.shape[1])])
        obs = pd.DataFrame(index=names[kept])
        parts[name] = ad.AnnData(matrix(array[kept]) if matrix is not None else array[kept], obs=obs, var=var)
    return md.MuData(parts)


def fitted(mdata, seed=0):
    kinds = {"rna": "negative_binomial", "atac": "multinomial"}
    dbio.tl.multiomics_vae(mdata, likelihoods=kinds, n_latent=5, max_epochs=EPOCHS, rng=seed)
    return mdata


def history(data):
    return data.uns["multiomics_vae"]["report"]["history"]


def shared_neighbours(left, right, number=10):
    found = [cKDTree(points).query(points, number + 1)[1][:, 1:] for points in (left, right)]
    return np.mean([len(np.intersect1d(*pair)) for pair in zip(*found, strict=True)]) / number


def test_lazy_modalities_are_read_once_and_train_as_in_memory(tmp_path, small_parts, expected, between_seeds):
    logs = {name: tmp_path / name for name in ("rna", "atac")}
    values, _ = counts()
    mdata = as_mudata(values, matrix=None)
    for name, part in mdata.mod.items():
        part.X = lazy_blocks.lazy(np.asarray(part.X), logs[name], CHUNK)
    matrices = {name: part.X for name, part in mdata.mod.items()}
    fitted(mdata)
    for name, part in mdata.mod.items():
        assert lazy_blocks.reads(logs[name], CHUNK).tolist() == [1] * -(-part.n_obs // CHUNK)
        assert part.X is matrices[name]
    for name in ("loss", "validation_loss"):
        assert len(history(mdata)[name]) == EPOCHS
        np.testing.assert_allclose(history(mdata)[name], history(expected)[name], rtol=0.01)
        # Other batches: the steps are not those of memory.
        assert (history(mdata)[name] != history(expected)[name]).all()
    found, wanted = (data.obsm["X_multiomics_vae"] for data in (mdata, expected))
    assert found.dtype == np.float32
    assert shared_neighbours(found, wanted) > 0.95 * between_seeds
    weights = "multiomics_vae_weight_atac"
    np.testing.assert_array_equal(np.asarray(mdata.obs[weights]) == 0, np.asarray(expected.obs[weights]) == 0)


def test_few_lazy_cells_are_held_and_give_the_result_of_memory(tmp_path, expected):
    mdata = as_mudata(counts()[0])
    mdata.write_h5mu(tmp_path / "cells.h5mu")
    backed = fitted(md.read_h5mu(tmp_path / "cells.h5mu", backed="r"))
    np.testing.assert_array_equal(history(backed)["loss"], history(expected)["loss"])
    np.testing.assert_array_equal(backed.obsm["X_multiomics_vae"], expected.obsm["X_multiomics_vae"])


@pytest.mark.parametrize("kind", ["lazy", "backed", "read_lazy"])
def test_modalities_of_one_matrix_are_read_together(tmp_path, small_parts, between_seeds, kind, monkeypatch):
    values, _ = counts()
    values = {name: np.maximum(array, 0) for name, array in values.items()}
    types = np.repeat(["rna", "atac"], [60, 50])
    shuffled = np.random.default_rng(0).permutation(110)
    matrix = np.concatenate(list(values.values()), axis=1)[:, shuffled]
    names = np.array([f"feature_{i}" for i in range(110)])[shuffled]
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(CELLS)])
    adata = ad.AnnData(
        sp.csr_matrix(matrix), obs=obs, var=pd.DataFrame({"feature_types": types[shuffled]}, index=names)
    )
    other = adata.copy()
    read = []
    if kind == "lazy":
        other.X = lazy_blocks.lazy(matrix, tmp_path / "log", CHUNK)
    elif kind == "read_lazy":
        other.write_zarr(tmp_path / "cells.zarr")
        other = ad.experimental.read_lazy(tmp_path / "cells.zarr")
        assert not isinstance(other.var, pd.DataFrame)
    else:
        other.write_h5ad(tmp_path / "cells.h5ad")
        other = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    source, original = other.X, RowStore.append
    monkeypatch.setattr(RowStore, "append", lambda self, block: (read.append(block.shape), original(self, block))[1])
    for data in (adata, other):
        fitted(data)
    assert kind == "backed" or other.X is source
    if kind == "lazy":
        assert lazy_blocks.reads(tmp_path / "log", CHUNK).tolist() == [1] * (CELLS // CHUNK)
    assert sum(rows for rows, _ in read) == 2 * CELLS
    assert {columns for _, columns in read} == {60, 50}
    np.testing.assert_allclose(history(other)["validation_loss"], history(adata)["validation_loss"], rtol=0.01)
    found = [data.obsm["X_multiomics_vae"] for data in (other, adata)]
    assert shared_neighbours(*found) > 0.95 * between_seeds


def test_a_fitted_model_reads_lazy_cells_as_those_in_memory(tmp_path, expected):
    values, _ = counts()
    lazy, held = as_mudata(values, matrix=None), as_mudata(values)
    for number, (name, part) in enumerate(lazy.mod.items()):
        kept = np.arange(part.n_vars)[:: -1 if number else 1][: -4 or None]
        held.mod[name] = held[name][:, kept].copy()
        array = np.asarray(part.X)[:, kept]
        lazy.mod[name] = ad.AnnData(array, obs=part.obs, var=part.var.iloc[kept])
        lazy.mod[name].X = lazy_blocks.lazy(array, tmp_path / name, CHUNK)
    found = []
    for data in (lazy, held):
        data.update()
        with pytest.warns(UserWarning, match="lacks 4 of the"):
            score = dbio.tl.multiomics_score(data, fitted=expected)
        with pytest.warns(UserWarning, match="lacks 4 of the"):
            imputed = dbio.tl.multiomics_impute(data, modality="atac", fitted=expected)
        with pytest.warns(UserWarning, match="lacks 4 of the"):
            dbio.tl.multiomics_encode(data, fitted=expected)
        found.append([score.to_numpy(), imputed.X, data.obsm["X_multiomics_vae"]])
    for left, right in zip(*found, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "must hold finite values"), (0.5, "must hold raw counts")])
def test_bad_values_on_disk_are_named_and_nothing_is_written(tmp_path, value, message):
    values, _ = counts()
    values["rna"][777, 5] = value
    mdata = as_mudata(values, matrix=None)
    mdata["rna"].X = lazy_blocks.lazy(values["rna"], tmp_path / "log", CHUNK)
    with pytest.raises(ValueError, match=rf"mdata\['rna'\].X {message}.*'cell_777', variable 'rna_5'"):
        dbio.tl.multiomics_vae(mdata, max_epochs=1)
    assert "X_multiomics_vae" not in mdata.obsm
    assert "multiomics_vae" not in mdata.uns


def test_runs_are_cut_anew_in_each_epoch_and_hold_every_cell_once():
    rng = np.random.default_rng(0)
    cells = np.delete(np.arange(3000), rng.choice(3000, 300, replace=False))
    matrix = RowStore.of([sp.csr_array(rng.poisson(1.0, (3000, 9)).astype(np.float32))], 9)
    config = MultiOmicsVAEConfig(modality_dims=(9,), latent_dim=2, likelihoods=("negative_binomial",))
    vae = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))
    source = streaming.CellSource(vae, [matrix], np.ones((3000, 1), bool), np.zeros(3000, int), cells, rng)
    first, second = source.order(0), source.order(1)
    np.testing.assert_array_equal(np.sort(first), cells)
    np.testing.assert_array_equal(source.order(0), first)
    starts = []
    for order in (first, second):
        place = np.searchsorted(cells, order)
        breaks = np.flatnonzero(np.diff(place) != 1) + 1
        lengths = np.diff(np.concatenate([[0], breaks, [len(order)]]))
        assert (lengths % streaming._RUN == 0).sum() > 0.8 * len(lengths)
        assert len(lengths) > 0.8 * len(cells) / streaming._RUN
        starts.append(set((place[breaks] % streaming._RUN).tolist()))
    assert starts[0] != starts[1]


def uneven_cells(cells):
    """Cells whose depth rises through the file, a few of them with large counts."""
    rng = np.random.default_rng(5)
    depth = np.linspace(0.1, 2.0, cells)[:, None]
    values = rng.poisson(depth * rng.gamma(0.5, 1.0, 40), (cells, 40)).astype(np.float32)
    values[rng.choice(cells, 3, replace=False), 0] = 700
    return sp.csr_array(values)


@pytest.mark.parametrize("seed", [0, 1])
def test_all_parts_of_all_seeds_share_one_program(small_parts, seed):
    matrix = RowStore.of([uneven_cells(CELLS)], 40)
    config = MultiOmicsVAEConfig(modality_dims=(40,), latent_dim=2, likelihoods=("negative_binomial",))
    vae = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))
    with compiled_programs() as programs:
        vae.fit_matrices([matrix], max_epochs=6, patience=7, rng=seed)
    epochs = [program for program in programs if "run_epoch" in program]
    assert len(epochs) == (1 if seed == 0 else 0), epochs


def test_no_more_cells_are_held_out_on_disk_than_are_kept():
    assert fitting.held_out_share(0.1, 50_000, on_disk=True) == 0.1
    assert fitting.held_out_share(0.1, 400_000, on_disk=True) * 400_000 == pytest.approx(10_000)
    assert fitting.held_out_share(0.1, 400_000, on_disk=False) == 0.1


def test_a_part_is_no_larger_than_the_budget_allows(monkeypatch):
    entries = sp.csr_array(np.ones((1000, 500), np.float32))
    store = RowStore.of([entries], 500)
    monkeypatch.setattr(dbio.settings, "block_bytes", "192MB")
    assert streaming.part_rows([store, store]) == 192_000_000 // (6 * 2 * 8 * 500)
    assert streaming.part_rows([store.dense()]) == 192_000_000 // (6 * 4 * 500)
    monkeypatch.setattr(dbio.settings, "block_bytes", "1MB")
    assert streaming.part_rows([store]) == streaming._FEWEST_ROWS
