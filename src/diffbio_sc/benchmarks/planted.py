"""Cells of two modalities that each tell types well and their kin weakly, for the quick suite of embeddings."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mudata import MuData


@lru_cache(maxsize=8)
def two_modalities(seed: int, n_cells: int = 300, n_genes: int = 200, n_peaks: int = 300, n_types: int = 6) -> MuData:
    """Shallow cells of known types (``.obs["cell_type"]``).

    Types come in pairs of kin, which differ less than other types do: some in RNA mostly, the others in chromatin.
    """
    import anndata
    import mudata
    import pandas as pd

    rng = np.random.default_rng(seed)
    types = rng.integers(0, n_types, n_cells)
    kin = np.arange(n_types) // 2
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical([f"type{k}" for k in types])}, index=[f"cell{i}" for i in range(n_cells)]
    )
    modalities = {}
    for name, size, base in (("rna", n_genes, -1.0), ("atac", n_peaks, -2.5)):
        shared = rng.normal(0, 1.0, (n_types, size)) * (rng.random((n_types, size)) < 0.3)
        own = rng.normal(0, 1.0, (n_types, size)) * (rng.random((n_types, size)) < 0.3)
        weight = np.where((kin % 2 == 0) == (name == "rna"), 0.7, 0.3)[:, None]
        level = (shared[kin] + weight * own)[types]
        depth = rng.lognormal(0, 0.3, (n_cells, 1))
        rate = depth * np.exp(rng.normal(base, 0.8, size) + level)
        if name == "rna":
            counts = rng.poisson(rate * rng.gamma(4.0, 1 / 4, rate.shape))
        else:
            counts = rng.random(rate.shape) < 1 - np.exp(-rate)
        var = pd.DataFrame(index=[f"{name}{i}" for i in range(size)])
        modalities[name] = anndata.AnnData(counts.astype(np.float32), obs=obs.copy(), var=var)
    mdata = mudata.MuData(modalities)
    mdata.obs["cell_type"] = obs["cell_type"]
    return mdata
