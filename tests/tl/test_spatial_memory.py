"""What a spot takes in memory: tissues of millions of spots must fit."""

from __future__ import annotations

import tracemalloc
import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio
from diffbio_sc import settings

MOST_BYTES_A_SPOT = 0.1 * 256_000_000 / (120_000 - 7_500)


def peak_of(side: int) -> int:
    """Largest number of bytes that are held at once, beyond the tissue itself."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(np.float64)
    rate = 0.15 * np.exp(np.sin(places[:, [0]] / 7.0) * np.array([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obsm={"spatial": places})
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dbio.tl.spatial_genes(adata)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_grows_by_few_bytes_a_spot(monkeypatch):
    monkeypatch.setattr(settings, "_block_bytes", 16_000_000)
    peak_of(20)  # what is loaded at the first call
    few, many = peak_of(160), peak_of(320)
    assert (many - few) / (320**2 - 160**2) < MOST_BYTES_A_SPOT
