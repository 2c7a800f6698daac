"""Training from an ``annbatch.Loader`` on files: what its batches hold arrives, once an epoch, in its order."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import optax
import pandas as pd
import pytest
import scipy.sparse as sp
from flax import nnx

from diffbio_sc.blocks.row_store import RowStore
from diffbio_sc.numerics.counts.sparse_rows import scatter_dense
from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig
from diffbio_sc.operators.multiomics.multiomics_vae import streaming
from diffbio_sc.training import IteratorSource, train

annbatch = pytest.importorskip("annbatch", reason="annbatch (Python 3.12 and later) is not installed")
zarr = pytest.importorskip("zarr")


@pytest.fixture
def make_loader(tmp_path):
    """Loader of counts and a column of numbers, in two zarr stores."""

    def made(counts, numbers=None, **options):
        counts, stored = sp.csr_matrix(counts), []
        for number, rows in enumerate(np.array_split(np.arange(counts.shape[0]), 2)):
            obs = pd.DataFrame(index=[f"cell_{row}" for row in rows])
            if numbers is not None:
                obs["number"] = numbers[rows]
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}_{number}.zarr"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of zarr, about names of files
                ad.AnnData(counts[rows], obs=obs).write_zarr(path)
            group = zarr.open_group(path, mode="r")
            stored.append(ad.AnnData(ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"])))
        return annbatch.Loader(**options).add_adatas(stored)

    return made


def test_a_fit_from_files_is_one_from_arrays(make_loader, make_linear, make_data):
    data, found, expected = make_data(70), make_linear(), make_linear()
    loader = make_loader(data["features"], data["targets"], batch_size=10, chunk_size=5, preload_nchunks=4)

    def convert(batch):
        return {"features": batch["X"].toarray(), "targets": batch["obs"]["number"].to_numpy()}

    options = {"optimizer": optax.sgd(0.02), "batch_size": 8, "max_epochs": 3}
    before = train(expected, data, **options)
    report = train(found, IteratorSource(loader, loader.n_obs, convert=convert, part_rows=128), **options)
    np.testing.assert_array_equal(found.weights[...], expected.weights[...])
    np.testing.assert_array_equal(report.history["loss"], before.history["loss"])


def test_shuffled_sparse_batches_hold_each_cell_once_an_epoch(make_loader, make_linear):
    """The loss sums the entries that it sees, times a number of the cell: over any epoch those of all cells."""
    random = np.random.default_rng(0)
    counts = (random.integers(1, 400, (90, 30)) * (random.random((90, 30)) < 0.3)).astype(np.float32)
    numbers, orders = random.normal(size=90).astype(np.float32), []
    loader = make_loader(
        counts, numbers, batch_size=16, chunk_size=4, preload_nchunks=8, shuffle=True, rng=np.random.default_rng(1)
    )

    def convert(batch):
        orders.append(batch["obs"].index.to_numpy())
        return {"counts": batch["X"], "numbers": batch["obs"]["number"].to_numpy()}

    def loss(operator, batch, key):
        total = (scatter_dense(batch["counts"]).sum(1) * batch["numbers"] * batch["sample_weight"]).sum()
        return total / batch["sample_weight"].sum() + 0.0 * operator.weights[...].sum()

    source = IteratorSource(loader, loader.n_obs, convert=convert, part_rows=32)
    report = train(make_linear(), source, loss=loss, weighted=True, stratified=True, batch_size=8, max_epochs=3)
    np.testing.assert_allclose(report.history["loss"], (counts.sum(1) * numbers).mean(), rtol=1e-5)
    seen = np.concatenate(orders).reshape(3, 90)
    assert all(len(set(epoch)) == 90 for epoch in seen)
    assert (seen[0] != seen[1]).any()
    assert (seen[1] != seen[2]).any()


def test_the_autoencoder_takes_the_cells_of_loaders(make_loader, monkeypatch):
    """Two loaders that go through the same cells: in memory if they are few, from temporary files else."""
    random = np.random.default_rng(0)
    place = random.normal(size=(300, 2))
    counts = [random.poisson(np.exp(place @ random.normal(0, 0.6, (2, size)) - 0.5)) for size in (40, 30)]
    loaders = [make_loader(one.astype(np.float32), batch_size=64, chunk_size=16, preload_nchunks=4) for one in counts]

    def fit(matrices):
        config = MultiOmicsVAEConfig(modality_dims=(40, 30), latent_dim=3)
        vae = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))
        report = vae.fit_matrices(matrices, max_epochs=3, rng=0)
        return vae.embed(matrices).mean, report.history["validation_loss"]

    def stored():
        return [RowStore.of((batch["X"] for batch in loader), loader.n_var) for loader in loaders]

    expected, losses = fit([sp.csr_array(one, dtype=np.float32) for one in counts])
    embedding, found = fit(stored())
    np.testing.assert_array_equal(embedding, expected)
    np.testing.assert_array_equal(found, losses)
    monkeypatch.setattr(streaming, "_FEWEST_ROWS", 128)
    monkeypatch.setattr(streaming, "_MOST_ROWS", 128)
    _, on_disk = fit(stored())
    np.testing.assert_allclose(on_disk, losses, rtol=0.01)
