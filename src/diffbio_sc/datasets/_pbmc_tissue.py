from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData

_LEAST_CELLS = 20


def pbmc_tissue(
    *, n_spots: int = 400, cells_per_spot: int = 8, rng: int | np.random.Generator = 0
) -> tuple[AnnData, AnnData]:
    """Mix real blood cells into a tissue of spots with known composition; no download.

    The cells are those that scanpy bundles (:func:`scanpy.datasets.pbmc68k_reduced`, 10x Genomics). Half of the cells
    of each type make the reference, the other half the spots. Each type has a region of the square tissue; spots draw
    their cells from the types of their neighbourhood, and their counts are the sums of those cells' counts.

    The bundled ``raw`` holds ``log1p(counts / total * 10,000)``. Counts are recovered exactly up to rounding: the
    smallest value of a cell above zero belongs to a count of 1, so dividing ``expm1`` of its values by ``expm1`` of the
    smallest gives whole numbers.

    Parameters
    ----------
    n_spots
        Spots, on a square grid.
    cells_per_spot
        Mean number of cells in a spot (Poisson, at least 2).
    rng
        Seed or generator.

    Returns
    -------
    Spots, with coordinates in ``.obsm["spatial"]``, cell numbers in ``.obs["n_cells"]`` and the truth, fractions of
    cells, in ``.obsm["truth"]``; and reference cells, with types in ``.obs["cell_type"]``. Raw counts in ``.X`` (CSR).

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, reference = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> spots.shape, reference.obs["cell_type"].nunique()
    ((100, 765), 7)
    """
    import anndata
    import scanpy

    check_options(pbmc_tissue, locals(), n_spots="[4, inf)", cells_per_spot="[2, inf)")
    n_spots, cells_per_spot = int(n_spots), int(cells_per_spot)
    generator = np.random.default_rng(rng)
    cells = scanpy.datasets.pbmc68k_reduced()
    labels = cells.obs["bulk_labels"].astype(str).to_numpy()
    counts = recover_counts(sp.csr_matrix(cells.raw.X))
    names, sizes = np.unique(labels, return_counts=True)
    names = names[sizes >= _LEAST_CELLS]

    reference_rows: list[int] = []
    pools: list[np.ndarray] = []
    for name in names:
        rows = generator.permutation(np.flatnonzero(labels == name))
        reference_rows.extend(rows[: len(rows) // 2])
        pools.append(rows[len(rows) // 2 :])

    side = int(np.ceil(np.sqrt(n_spots)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[:n_spots].astype(float)
    # One centre a type, spread over the tissue; a spot's chance of a type falls with the distance to its centre.
    angle = 2 * np.pi * (np.arange(len(names)) + generator.uniform()) / len(names)
    centres = side / 2 + 0.36 * side * np.stack([np.cos(angle), np.sin(angle)], 1)
    distance = ((grid[:, None] - centres[None]) ** 2).sum(-1) / (0.16 * side) ** 2
    chance = np.exp(-distance / 2) + 1e-6
    chance /= chance.sum(1, keepdims=True)

    n_cells = np.maximum(generator.poisson(cells_per_spot, n_spots), 2)
    truth = np.zeros((n_spots, len(names)))
    spot_rows: list[int] = []
    cell_columns: list[int] = []
    for spot in range(n_spots):
        drawn = generator.choice(len(names), n_cells[spot], p=chance[spot])
        truth[spot] = np.bincount(drawn, minlength=len(names)) / n_cells[spot]
        spot_rows.extend([spot] * len(drawn))
        cell_columns.extend(generator.choice(pools[kind]) for kind in drawn)
    mixing = sp.csr_matrix(
        (np.ones(len(spot_rows), np.float32), (spot_rows, cell_columns)), shape=(n_spots, cells.n_obs)
    )

    spot_names = pd.Index([f"spot_{i}" for i in range(n_spots)])
    genes = pd.DataFrame(index=pd.Index(cells.raw.var_names.astype(str)))
    types = [name.replace("/", " ") for name in names]
    spots = anndata.AnnData(
        sp.csr_matrix(mixing @ counts), obs=pd.DataFrame({"n_cells": n_cells}, index=spot_names), var=genes.copy()
    )
    spots.obsm["spatial"] = grid
    spots.obsm["truth"] = pd.DataFrame(truth, index=spot_names, columns=types)
    reference = anndata.AnnData(
        counts[reference_rows],
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical([labels[row].replace("/", " ") for row in reference_rows], categories=types)},
            index=cells.obs_names[reference_rows].astype(str),
        ),
        var=genes.copy(),
    )
    return spots, reference


def recover_counts(log_normalised: sp.csr_matrix) -> sp.csr_matrix:
    """Counts behind ``log1p(counts / total * 10,000)``, taking each cell's smallest positive value as a count of 1."""
    scaled = log_normalised.astype(np.float64).copy()
    scaled.eliminate_zeros()
    scaled.data = np.expm1(scaled.data)
    smallest = np.ones(scaled.shape[0])
    filled = np.flatnonzero(np.diff(scaled.indptr))
    smallest[filled] = np.minimum.reduceat(scaled.data, scaled.indptr[filled])
    scaled.data = np.rint(scaled.data / np.repeat(smallest, np.diff(scaled.indptr)))
    return scaled.astype(np.float32)
