"""Small data sets with planted truth for the quick suites: spatial genes, cells of two modalities, fragments."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from diffbio_sc.io import Intervals

PATTERNS = ("hotspot", "streak", "gradient", "periodic", "foci")
GENOME = {"chr1": 2_000_000, "chr2": 1_000_000}
_PEAKS_PER_MB = 60


@lru_cache(maxsize=8)
def spatial_genes(seed: int, n_spots: int = 300, n_genes: int = 200, fold: float = 2.5) -> AnnData:
    """Overdispersed counts on scattered spots; a fifth of the genes follow one of five patterns (``.var["truth"]``)."""
    import anndata
    import pandas as pd

    rng = np.random.default_rng(seed)
    places = rng.uniform(0, np.sqrt(n_spots), (n_spots, 2))
    depth = rng.lognormal(0, 0.3, n_spots)
    mean = rng.lognormal(0.3, 0.8, n_genes)
    truth = np.arange(n_genes) % 5 == 0
    pattern = np.where(truth, [PATTERNS[(gene // 5) % len(PATTERNS)] for gene in range(n_genes)], "none")
    rate = np.outer(depth, mean)
    for gene in np.flatnonzero(truth):
        shape = 1 + (fold - 1) * spatial_profile(places, str(pattern[gene]), rng)
        rate[:, gene] *= shape / shape.mean()
    counts = rng.poisson(rate * rng.gamma(5.0, 1 / 5, rate.shape)).astype(np.float32)
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


@lru_cache(maxsize=8)
def fragments_with_peaks(seed: int, strength: float = 1.0) -> tuple[Intervals, pd.DataFrame]:
    """Fragments over an uneven background, and the planted peaks with their summits (``peak``, from ``start``)."""
    import pandas as pd

    from diffbio_sc.io import Intervals

    rng = np.random.default_rng(seed)
    chroms, middles, tables = [], [], []
    for chrom, size in GENOME.items():
        blocks = size // 5000
        level = np.exp(0.3 * np.convolve(rng.normal(size=blocks + 8), np.ones(9) / 3, mode="valid"))
        block = rng.choice(blocks, size // 80, p=level / level.sum())
        middle = block * 5000 + rng.integers(0, 5000, len(block))
        grid = size * _PEAKS_PER_MB // 1_000_000
        summit = ((np.arange(grid) + rng.uniform(0.2, 0.8, grid)) * (size / grid)).astype(int)
        number = rng.poisson(strength * rng.lognormal(3.9, 0.4, grid))
        inside = np.repeat(summit, number) + rng.normal(0, 70, number.sum()).astype(int)
        middles.append(np.clip(np.concatenate([middle, inside]), 400, size - 400))
        chroms.append(np.full(len(middles[-1]), chrom))
        tables.append(pd.DataFrame({"chrom": chrom, "start": summit - 150, "end": summit + 150, "peak": 150}))
    middle, chrom = np.concatenate(middles), np.concatenate(chroms)
    half = rng.integers(60, 140, len(middle))
    return (
        Intervals.from_arrays(chrom, middle - half, middle + half, sizes=GENOME),
        pd.concat(tables, ignore_index=True),
    )
