"""Presence and absence of marks in bins, in ChromHMM's text format: writing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._write_text import open_writer

if TYPE_CHECKING:
    from anndata import AnnData

_MISSING = 2


def write_chromhmm_binary(
    adata: AnnData,
    folder: PathLike,
    *,
    layer: str | None = None,
    cell_type_key: str | None = None,
    cell_type: str = "sample",
    axis: Literal["var", "obs"] | None = None,
    compress: bool = True,
) -> list[str]:
    """Write binarised marks as ChromHMM reads them, one file for each cell type and chromosome.

    Parameters
    ----------
    adata
        Object with bins along one axis and marks along the other, and values 0, 1, and NaN where missing.
    folder
        Folder for the files, made if it is not there.
    layer
        Layer with the values; default ``X``.
    cell_type_key
        Column with the cell type of each bin, where the bins of several lie one after the other.
    cell_type
        Name of the cell type where there is one.
    axis
        Which axis holds the bins, if both could.
    compress
        Write ``_binary.txt.gz`` rather than ``_binary.txt``.

    Returns
    -------
    Paths of the files. ChromHMM knows no gaps: bins before and between those of the object are written as missing (2).

    Raises
    ------
    KeyError
        If the layer, the column or the axis is missing.
    ValueError
        If a value is none of 0, 1 and NaN, bins differ in width or do not start at multiples of it, or a name cannot be
        part of a file's name or of a line.

    Examples
    --------
    >>> import tempfile, diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=200)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = dbio.io.write_chromhmm_binary(adata, folder)
    ...     again = dbio.io.read_chromhmm_binary(folder)
    >>> len(paths), bool((again.X == adata.X).all())
    (4, True)
    """
    from diffbio_sc._anndata.cell_types import read_cell_type_bins
    from diffbio_sc._anndata.names import require_unique

    check_options(write_chromhmm_binary, locals())
    _, parts = read_cell_type_bins(adata, cell_type_key, axis=axis)
    tracks = parts[0].genome.signal(adata, layer)
    marks = [str(name) for name in parts[0].genome.track_names(adata)]
    require_unique(marks, "names of marks", "ChromHMM knows marks by their names: rename them.")
    names = [part.name or cell_type for part in parts]
    for name in [*marks, *names, *parts[0].genome.chromosomes]:
        if set(name) & set("\t\r\n") or name == "":
            raise ValueError(f"names of marks, cell types and chromosomes must not hold tabs or line ends: {name!r}.")
    bad = [name for name in names if os.sep in name or "/" in name]
    if bad:
        raise ValueError(f"names of cell types must be part of a file's name, found {bad[:5]}.")
    columns = np.stack([_as_digits(tracks.take(np.array([row]))[0], mark) for row, mark in enumerate(marks)], 1)
    jobs = []
    for part, name in zip(parts, names, strict=True):
        width = part.genome.width
        start = part.genome.table["start"].to_numpy()
        if width is None or (start % width).any():
            raise ValueError(
                f"bins of {name!r} must be of one width and start at multiples of it, as ChromHMM's are, found "
                + (f"width {width}" if width else "several widths")
                + "."
            )
        code = part.genome.table["chrom"].cat.codes.to_numpy()
        jobs += [
            (name, chromosome, part.positions[code == index], start[code == index] // width)
            for index, chromosome in enumerate(part.genome.chromosomes)
        ]
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for name, chromosome, positions, place in jobs:
        lines = np.full((int(place.max()) + 1, 2 * len(marks)), ord("\t"), np.uint8)
        lines[:, ::2] = ord("0") + _MISSING
        lines[place, ::2] = ord("0") + columns[positions]
        lines[:, -1] = ord("\n")
        path = Path(folder) / f"{name}_{chromosome}_binary.txt{'.gz' if compress else ''}"
        with open_writer(path) as stream:
            stream.write(f"{name}\t{chromosome}\n{chr(9).join(marks)}\n".encode())
            stream.write(lines.tobytes())
        paths.append(str(path))
    return paths


def _as_digits(values: np.ndarray, mark: str) -> np.ndarray:
    missing = np.isnan(values)
    bad = ~(missing | (values == 0) | (values == 1))
    if bad.any():
        raise ValueError(
            f"ChromHMM's binary files hold 0, 1 and missing values (NaN), found {values[bad][0]:.6g} of mark {mark!r} "
            f"({int(bad.sum())} such values). Counts are binarised by dbio.pp.binarize."
        )
    return np.where(missing, _MISSING, values).astype(np.uint8)
