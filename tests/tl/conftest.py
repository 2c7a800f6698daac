from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

TYPES = ["Astro", "L2/3 IT", "Oligo", "Pvalb", "Sst"]


def simulate_tissue(seed=0, *, spots=120, genes=200, types=5, cells=40, platform=0.4, depth=3000.0, present=2):
    """Spots and reference cells drawn from known profiles; truth in fractions of cells."""
    rng = np.random.default_rng(seed)
    names = (TYPES + [f"type {i}" for i in range(len(TYPES), types)])[:types]
    profiles = rng.gamma(0.3, 1.0, (types, genes)) * rng.lognormal(0, 1, genes) + 1e-3
    profiles /= profiles.sum(1, keepdims=True)
    size = rng.uniform(2000, 4000, types)
    truth = np.zeros((spots, types))
    for spot in range(spots):
        truth[spot, rng.choice(types, present, replace=False)] = rng.dirichlet(np.ones(present) * 2)
    mean = truth @ (profiles * size[:, None] * rng.lognormal(0, platform, genes))
    mean *= (rng.lognormal(np.log(depth), 0.3, spots) / mean.sum(1))[:, None]
    counts = rng.poisson(mean * rng.gamma(20, 1 / 20, mean.shape))
    labels = np.repeat(np.arange(types), cells)
    cell_mean = profiles[labels] * size[labels, None] * rng.lognormal(0, 0.2, len(labels))[:, None]
    cell_counts = rng.poisson(cell_mean * rng.gamma(3, 1 / 3, cell_mean.shape))
    gene_names = pd.Index([f"gene{i}" for i in range(genes)])
    side = int(np.ceil(np.sqrt(spots)))
    adata = ad.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame({"n_cells": rng.poisson(8, spots) + 1}, index=[f"spot{i}" for i in range(spots)]),
        var=pd.DataFrame(index=gene_names),
    )
    adata.obsm["spatial"] = np.stack([np.arange(spots) % side, np.arange(spots) // side], 1).astype(float)
    adata.obsm["truth"] = pd.DataFrame(truth, index=adata.obs_names, columns=[name.replace("/", "|") for name in names])
    reference = ad.AnnData(
        sp.csr_matrix(cell_counts.astype(np.float32)),
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical.from_codes(labels, names)}, index=[f"cell{i}" for i in range(len(labels))]
        ),
        var=pd.DataFrame(index=gene_names),
    )
    return adata, reference


@pytest.fixture(scope="session")
def _tissue():
    return simulate_tissue()


@pytest.fixture
def tissue(_tissue):
    return _tissue[0].copy(), _tissue[1].copy()


@pytest.fixture(scope="session")
def simulate():
    return simulate_tissue
