from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._options import check_options
from diffbio_sc._random import as_generator
from diffbio_sc.numerics.spatial.profiles import PATTERNS, spatial_profile

if TYPE_CHECKING:
    from anndata import AnnData


def simulate_spatial_genes(
    *, n_spots: int = 400, n_genes: int = 250, fold: float = 2.5, rng: int | np.random.Generator = 0
) -> AnnData:
    """Simulate a tissue in which every fifth gene follows a spatial pattern.

    Spots lie at random in a square of one spot per unit of area and differ in depth (log-normal, 0.3). Counts are
    negative binomial with dispersion 0.2. A gene with a pattern is up to ``fold`` times as high where the pattern is:
    one hotspot of a tenth of the spots, a streak, a gradient, a wave, or six small foci.

    Parameters
    ----------
    n_spots
        Number of spots.
    n_genes
        Number of genes.
    fold
        Expression at the height of a pattern over that outside of it.
    rng
        Seed or generator.

    Returns
    -------
    Spots by genes with counts in ``.X`` (float32), coordinates in ``.obsm["spatial"]``, and in ``.var`` the truth:
    ``truth`` (whether the gene has a pattern) and ``pattern`` (which, or ``"none"``).

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots = dbio.datasets.simulate_spatial_genes(n_genes=50)
    >>> spots.shape, int(spots.var["truth"].sum())
    ((400, 50), 10)
    """
    import anndata

    check_options(simulate_spatial_genes, locals(), n_spots="[20, inf)", n_genes="[1, inf)", fold="[1, inf)")
    n_spots, n_genes = int(n_spots), int(n_genes)
    generator = as_generator(rng)
    places = generator.uniform(0, np.sqrt(n_spots), (n_spots, 2))
    depth = generator.lognormal(0, 0.3, n_spots)
    mean = generator.lognormal(0.3, 0.8, n_genes)
    truth = np.arange(n_genes) % 5 == 0
    pattern = np.where(truth, [PATTERNS[(gene // 5) % len(PATTERNS)] for gene in range(n_genes)], "none")
    rate = np.outer(depth, mean)
    for gene in np.flatnonzero(truth):
        shape = 1 + (fold - 1) * spatial_profile(places, str(pattern[gene]), generator)
        rate[:, gene] *= shape / shape.mean()
    counts = generator.poisson(rate * generator.gamma(5.0, 1 / 5, rate.shape)).astype(np.float32)
    var = pd.DataFrame({"truth": truth, "pattern": pd.Categorical(pattern)}, index=[f"gene{g}" for g in range(n_genes)])
    adata = anndata.AnnData(counts, obs=pd.DataFrame(index=[f"spot{i}" for i in range(n_spots)]), var=var)
    adata.obsm["spatial"] = places
    return adata
