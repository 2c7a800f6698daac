"""A process of ``test_devices.py``: ``devices_run.py result.npz batch_size [file_of_the_port number]``."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time

import anndata as ad
import jax
import jax.numpy as jnp
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from flax import nnx

import diffbio_sc as dbio
from diffbio_sc.numerics.counts.sparse_rows import scatter_dense
from diffbio_sc.operators import Operator, OperatorConfig
from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig
from diffbio_sc.operators.multiomics.multiomics_vae import streaming
from diffbio_sc.training import IteratorSource, batches, train
from diffbio_sc.training.devices import place_training


class Linear(Operator):
    """Linear regression with dropout."""

    loss_takes_weights = True

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.weights = nnx.Param(jnp.zeros(3))
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def loss(self, data):
        squares = (self.dropout(data["features"]) @ self.weights[...] - data["targets"]) ** 2
        return jnp.sum(data["sample_weight"] * squares) / jnp.sum(data["sample_weight"])


def line(batch_size):
    """Train on dense samples with a random stream, validation and a last batch that is not full."""
    random = np.random.default_rng(0)
    features = random.normal(size=(90, 3))
    data = {"features": features, "targets": features @ [1.0, -2.0, 0.5] + 0.1 * random.normal(size=90)}
    operator = Linear(OperatorConfig(), rngs=nnx.Rngs(0))
    report = train(operator, data, batch_size=batch_size, max_epochs=10, learning_rate=0.05, validation=0.2)
    weights = operator.weights[...]
    assert len(weights.devices()) == 1
    return {"weights": weights, **{f"line/{name}": curve for name, curve in report.history.items()}}


def parts(batch_size):
    """Train on samples, some of them sparse, that come in three parts from a loader."""
    random = np.random.default_rng(0)
    features = random.normal(size=(90, 3)).astype(np.float32)
    counts = sp.random_array((90, 40), density=0.3, format="csr", dtype=np.float32, rng=random)
    loader = [{"features": features[rows], "counts": counts[rows]} for rows in (slice(0, 50), slice(50, 90))]

    def loss(operator, batch, key):
        targets = scatter_dense(batch["counts"]).sum(1)
        squares = (batch["features"] @ operator.weights[...] - targets) ** 2
        return jnp.sum(batch["sample_weight"] * squares) / jnp.sum(batch["sample_weight"])

    source, operator = IteratorSource(loader, 90, part_rows=32), Linear(OperatorConfig(), rngs=nnx.Rngs(0))
    report = train(operator, source, loss=loss, weighted=True, batch_size=batch_size, stratified=True, max_epochs=4)
    return {f"parts/{name}": curve for name, curve in report.history.items()}


def vae(batch_size):
    """Train on sparse and dense counts of which some cells lack one."""
    random = np.random.default_rng(0)
    place = random.normal(size=(203, 2))
    matrices = []
    for size in (40, 30, 12):
        counts = random.poisson(np.exp(0.4 * place @ random.normal(size=(2, size)) - 0.5)).astype(np.float32)
        matrices.append(sp.csr_array(counts))
    matrices[2] = matrices[2].toarray() + random.normal(size=(203, 12)).astype(np.float32)
    present = np.ones((203, 3), bool)
    present[::5, 1] = False
    kinds = ("negative_binomial", "multinomial", "gaussian")
    config = MultiOmicsVAEConfig(modality_dims=(40, 30, 12), latent_dim=3, likelihoods=kinds)
    operator = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))
    report = operator.fit_matrices(matrices, present=present, max_epochs=4, batch_size=batch_size, patience=10)
    embedding = operator.embed(matrices, present=present).mean
    return {"embedding": embedding, **{f"vae/{name}": curve for name, curve in report.history.items()}}


def stored():
    """Fit the model to lazy modalities in a file, in parts of 128 cells."""
    streaming._FEWEST_ROWS = streaming._MOST_ROWS = 128
    random = np.random.default_rng(0)
    place, parts = random.normal(size=(500, 2)), {}
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(500)])
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("rna", 60), ("atac", 50)):
            counts = random.poisson(np.exp(place @ random.normal(0, 0.7, (2, size)) - 0.5)).astype(np.float32)
            path = f"{folder}/{name}.zarr"
            var = pd.DataFrame(index=[f"{name}_{i}" for i in range(size)])
            ad.AnnData(sp.csr_matrix(counts), obs=obs, var=var).write_zarr(path)
            parts[name] = ad.AnnData(ad.experimental.read_elem_lazy(zarr.open_group(path)["X"]), obs=obs, var=var)
        mdata = md.MuData(parts)
        kinds = {"rna": "negative_binomial", "atac": "multinomial"}
        dbio.tl.multiomics_vae(mdata, likelihoods=kinds, n_latent=4, max_epochs=3)
    history = mdata.uns["multiomics_vae"]["report"]["history"]
    return {
        "stored_embedding": mdata.obsm["X_multiomics_vae"],
        **{f"stored/{name}": curve for name, curve in history.items()},
    }


def sizes(batch_size):
    """Bytes of samples on all devices of this process, and on the one that has the most."""
    random = np.random.default_rng(0)
    matrix = sp.random_array((2000, 300), density=0.2, format="csr", dtype=np.float32, rng=random)
    data = {"x": random.normal(size=(2000, 20)), "counts": batches.Samples(matrix, random.permutation(2000), 9000)}
    samples, _ = batches.place_samples(data, None, 2000, placement=place_training(batch_size))
    held: dict[int, int] = {}
    for array in jax.tree.leaves(samples):
        for shard in array.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return {"sample_bytes": sum(held.values()), "largest_part": max(held.values())}


def agreed_port(path, number):
    """A port that is free: the first process writes it down just before it takes it, and the other one waits for that.

    While libraries are loaded, others on the machine may take one.
    """
    if number == 0:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        with open(f"{path}.part", "w") as file:
            file.write(str(port))
        os.replace(f"{path}.part", path)
        return port
    while not os.path.exists(path):  # the test ends processes that wait for long
        time.sleep(0.05)
    with open(path) as file:
        return int(file.read())


def main():
    """Write the results of this process."""
    path, batch_size, *host = sys.argv[1:]
    if host:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        number = int(host[1])
        jax.distributed.initialize(f"localhost:{agreed_port(host[0], number)}", num_processes=2, process_id=number)
    dbio.settings.verbosity = "info"
    size = int(batch_size)
    np.savez(path, devices=jax.device_count(), **line(size), **parts(size), **vae(size), **stored(), **sizes(size))


if __name__ == "__main__":
    main()
