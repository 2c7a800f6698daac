from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._options import check_options
from diffbio_sc._random import as_generator

if TYPE_CHECKING:
    from mudata import MuData


def simulate_multiomics(
    *,
    n_cells: int = 400,
    n_genes: int = 300,
    n_peaks: int = 500,
    n_types: int = 6,
    rng: int | np.random.Generator = 0,
) -> MuData:
    """Simulate shallow cells with RNA and chromatin, whose types only both modalities together tell well.

    Types come in pairs of kin, which differ less than other types do: every other pair in RNA mostly, the others in
    chromatin. RNA counts are negative binomial (dispersion 0.25), accessibility is binary, and cells differ in depth
    (log-normal, 0.3) in each modality.

    Parameters
    ----------
    n_cells
        Number of cells.
    n_genes
        Number of genes.
    n_peaks
        Number of peaks.
    n_types
        Number of cell types; an even number.
    rng
        Seed or generator.

    Returns
    -------
    A MuData with modalities ``rna`` (counts) and ``atac`` (0 and 1), and the truth in ``.obs["cell_type"]``.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> mdata = dbio.datasets.simulate_multiomics(n_cells=100)
    >>> list(mdata.mod), mdata.obs["cell_type"].nunique()
    (['rna', 'atac'], 6)
    """
    import anndata
    import mudata

    check_options(
        simulate_multiomics, locals(), n_cells="[1, inf)", n_types="[2, inf)", n_genes="[1, inf)", n_peaks="[1, inf)"
    )
    n_cells, n_genes, n_peaks, n_types = int(n_cells), int(n_genes), int(n_peaks), int(n_types)
    if n_types % 2:
        raise ValueError(f"n_types must be even, found {n_types}.")
    sizes = {"rna": n_genes, "atac": n_peaks}
    generator = as_generator(rng)
    types = generator.integers(0, n_types, n_cells)
    kin = np.arange(n_types) // 2
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical([f"type{k}" for k in types])}, index=[f"cell{i}" for i in range(n_cells)]
    )
    modalities = {}
    for (name, size), base in zip(sizes.items(), (-1.0, -2.5), strict=True):
        shared, own = (
            generator.normal(0, 1.0, (n_types, size)) * (generator.random((n_types, size)) < 0.3) for _ in range(2)
        )
        weight = np.where((kin % 2 == 0) == (name == "rna"), 0.7, 0.3)[:, None]
        level = (shared[kin] + weight * own)[types]
        depth = generator.lognormal(0, 0.3, (n_cells, 1))
        rate = depth * np.exp(generator.normal(base, 0.8, size) + level)
        if name == "rna":
            counts = generator.poisson(rate * generator.gamma(4.0, 1 / 4, rate.shape))
        else:
            counts = generator.random(rate.shape) < 1 - np.exp(-rate)
        var = pd.DataFrame(index=[f"{name}{i}" for i in range(size)])
        modalities[name] = anndata.AnnData(counts.astype(np.float32), obs=obs.copy(), var=var)
    mdata = mudata.MuData(modalities)
    mdata.obs["cell_type"] = obs["cell_type"]
    return mdata
