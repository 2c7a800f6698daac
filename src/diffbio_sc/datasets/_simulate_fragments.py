from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._options import check_options
from diffbio_sc._random import as_generator

if TYPE_CHECKING:
    from diffbio_sc.io import Intervals

GENOME = {"chr1": 2_000_000, "chr2": 1_000_000}
_PEAKS_PER_MB = 60
_BLOCK = 5_000
_KINDS = ("both", "B cell", "T cell")


def simulate_fragments(
    path: str | os.PathLike[str] | None = None,
    *,
    n_cells: int = 120,
    strength: float = 1.0,
    rng: int | np.random.Generator = 0,
) -> tuple[Intervals, pd.DataFrame, pd.Series]:
    """Simulate fragments of single cells of two types, with open places at known positions.

    Two chromosomes of 2 and 1 Mb have 60 open places per Mb. A third of them is open in both types, a third in B cells
    and a third in T cells. The background is uneven: its level changes smoothly every 5 kb.

    Parameters
    ----------
    path
        Also write them as a fragments file of five columns, as Cell Ranger does (compressed if it ends with ``.gz``).
    n_cells
        Number of cells; the first half are B cells.
    strength
        Fragments of an open place, in units of about 50.
    rng
        Seed or generator.

    Returns
    -------
    fragments
        Fragments with barcodes.
    places
        Table with ``chrom``, ``start``, ``end``, ``peak`` (summit as an offset from ``start``) and ``kind``.
    cell_types
        Type of each barcode.

    Raises
    ------
    ValueError
        If a number is out of range.
    FileNotFoundError
        If the folder of ``path`` does not exist.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments, places, cell_types = dbio.datasets.simulate_fragments()
    >>> len(places), cell_types.nunique()
    (180, 2)
    """
    from diffbio_sc.io import Intervals

    check_options(simulate_fragments, locals(), n_cells="[2, inf)", strength="(0, inf)")
    n_cells = int(n_cells)
    generator = as_generator(rng)
    chroms, middles, tables, sources = [], [], [], []
    for chrom, size in GENOME.items():
        blocks = size // _BLOCK
        level = np.exp(0.3 * np.convolve(generator.normal(size=blocks + 8), np.ones(9) / 3, mode="valid"))
        block = generator.choice(blocks, size // 80, p=level / level.sum())
        middle = block * _BLOCK + generator.integers(0, _BLOCK, len(block))
        grid = size * _PEAKS_PER_MB // 1_000_000
        summit = ((np.arange(grid) + generator.uniform(0.2, 0.8, grid)) * (size / grid)).astype(int)
        number = generator.poisson(strength * generator.lognormal(3.9, 0.4, grid))
        inside = np.repeat(summit, number) + generator.normal(0, 70, number.sum()).astype(int)
        middles.append(np.clip(np.concatenate([middle, inside]), 400, size - 400))
        chroms.append(np.full(len(middles[-1]), chrom))
        table = pd.DataFrame({"chrom": chrom, "start": summit - 150, "end": summit + 150, "peak": 150})
        kind = np.arange(grid) % len(_KINDS)
        tables.append(table.assign(kind=np.array(_KINDS)[kind]))
        sources.append(np.concatenate([np.zeros(len(middle), int), np.repeat(kind, number)]))
    middle, chrom, source = np.concatenate(middles), np.concatenate(chroms), np.concatenate(sources)
    half = generator.integers(60, 140, len(middle))

    barcodes = [f"cell{i}-1" for i in range(n_cells)]
    is_b = np.arange(n_cells) < n_cells // 2
    first, last = np.array([0, 0, n_cells // 2])[source], np.array([n_cells, n_cells // 2, n_cells])[source]
    cell = generator.integers(first, last)
    cell_types = pd.Series(np.where(is_b, _KINDS[1], _KINDS[2]), index=barcodes, name="cell_type", dtype="category")
    fragments = Intervals.from_arrays(
        chrom, middle - half, middle + half, cell_code=cell, barcodes=barcodes, sizes=GENOME
    )
    if path is not None:
        _write(
            path, pd.DataFrame({"chrom": chrom, "start": middle - half, "end": middle + half, "cell": cell}), barcodes
        )
    return fragments, pd.concat(tables, ignore_index=True), cell_types


def _write(path: str | os.PathLike[str], table: pd.DataFrame, barcodes: list[str]) -> None:
    from diffbio_sc._files import replacing

    table = table.assign(barcode=np.array(barcodes)[table.pop("cell")], count=1).sort_values(["chrom", "start", "end"])
    with replacing(path) as temporary:
        table.to_csv(temporary, sep="\t", header=False, index=False)
