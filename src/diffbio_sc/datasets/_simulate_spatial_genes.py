from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._checks import whole_number
from diffbio_sc._random import as_generator

if TYPE_CHECKING:
    from anndata import AnnData

PATTERNS = ("hotspot", "streak", "gradient", "periodic", "foci")


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

    n_spots, n_genes = whole_number(n_spots, "n_spots", minimum=20), whole_number(n_genes, "n_genes")
    if not fold >= 1:
        raise ValueError(f"fold must be at least 1, found {fold!r}.")
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


def spatial_profile(places: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Profile of a pattern over some places, between 0 and 1."""
    place = (places - places.min(0)) / np.ptp(places, 0).max()
    if kind in ("hotspot", "foci"):
        number, share = (1, 0.1) if kind == "hotspot" else (6, 0.02)
        result = np.zeros(len(place))
        for _ in range(number):
            distance = ((place - place[rng.integers(len(place))]) ** 2).sum(1)
            result[distance <= np.sort(distance)[max(3, int(share * len(place))) - 1]] = 1
        return result
    angle = rng.uniform(0, 2 * np.pi if kind == "gradient" else np.pi)
    along = place @ [np.cos(angle), np.sin(angle)]
    if kind == "streak":
        return (abs(along - np.quantile(along, rng.uniform(0.15, 0.85))) < 0.07 * np.ptp(along)).astype(float)
    if kind == "gradient":
        return (along - along.min()) / np.ptp(along)
    waves = rng.uniform(3, 5) / np.ptp(place, 0).max()
    return 0.5 + 0.5 * np.sin(2 * np.pi * along * waves + rng.uniform(0, 2 * np.pi))
