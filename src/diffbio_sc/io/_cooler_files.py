"""Opening and reading the files of cooler: .cool, .mcool and .scool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.contacts_object import bins_table, contacts_object, counts_or_values

if TYPE_CHECKING:
    from anndata import AnnData

Storage = Literal["auto", "symmetric", "upper"]
_BLOCK = 20_000_000  # pixels read at once


def import_cooler() -> Any:
    """Cooler, or an error that says how to get it."""
    try:
        import cooler
    except ImportError as error:
        raise ImportError(
            "cooler reads and writes .cool, .mcool and .scool files; install it: pip install 'diffbio-sc[hic]'."
        ) from error
    return cooler


def cooler_uri(cooler: Any, path: str | os.PathLike[str], resolution: int | None, cell: str | None) -> str:
    """URI of one cooler in the file."""
    text = os.fspath(path)
    file, _, group = text.partition("::")
    if not Path(file).exists():
        raise FileNotFoundError(f"no such file: {file}.")
    if group:
        if resolution is not None or cell is not None:
            raise ValueError(f"{text!r} already names a group of the file: leave resolution and cell out.")
        if not has_group(cooler, file, group):
            raise KeyError(f"{file} has no cooler at {group!r}; it has {_some(cooler.fileops.list_coolers(file))}.")
        return text
    try:
        single, several, cells = (
            check(file)
            for check in (cooler.fileops.is_cooler, cooler.fileops.is_multires_file, cooler.fileops.is_scool_file)
        )
    except OSError as error:
        raise ValueError(f"{file} is no cooler file: it is not HDF5 ({error}).") from error
    if cells:
        names = cell_names(cooler, file)
        if cell is None:
            raise ValueError(
                f"{file} holds {len(names)} cells: pass cell=, one of {_some(list(names))}, or open all with "
                "dbio.io.read_scool."
            )
        if cell not in names:
            raise KeyError(f"{file} has no cell {cell!r}; it has {_some(list(names))}.")
        return f"{file}::{names[cell]}"
    if cell is not None:
        raise ValueError(f"{file} is no .scool file, so that it has no cell {cell!r}.")
    if several:
        found = sorted(
            int(name.rsplit("/", 1)[1]) for name in cooler.fileops.list_coolers(file) if "/resolutions/" in name
        )
        if resolution is None:
            if len(found) > 1:
                raise ValueError(f"{file} holds several resolutions: pass resolution=, one of {found}.")
            resolution = found[0]
        if resolution not in found:
            raise KeyError(f"{file} has no resolution {resolution}; it has {found}.")
        return f"{file}::/resolutions/{resolution}"
    if not single:
        raise ValueError(
            f"{file} is no cooler file: it is HDF5 without a cooler in it."
            if not cooler.fileops.list_coolers(file)
            else f"{file} holds coolers at {_some(cooler.fileops.list_coolers(file))}: pass '{file}::GROUP'."
        )
    if resolution is not None:
        width = cooler.Cooler(file).binsize
        if width != resolution:
            raise KeyError(f"{file} has bins of {width} bp, not {resolution}.")
    return file


def has_group(cooler: Any, file: str, group: str) -> bool:
    """Whether an HDF5 file has a cooler at a group."""
    return f"/{group.strip('/')}" in cooler.fileops.list_coolers(file)


def cell_names(cooler: Any, file: str) -> dict[str, str]:
    """Group of each cell of an .scool file by its name."""
    return {group.rsplit("/", 1)[1]: group for group in cooler.fileops.list_scool_cells(file)}


def _some(names: Sequence[Any]) -> str:
    return str(list(names[:5])) + (f" ... ({len(names)})" if len(names) > 5 else "")


def read_cooler(
    source: Any, name: str, chroms: Sequence[str] | str | None = None, trans: bool = True, storage: Storage = "auto"
) -> AnnData:
    """Read an opened cooler."""
    if source.binsize is None:
        raise ValueError(f"{name} has bins of different widths, such as restriction fragments: bin it first.")
    wanted = list(source.chromnames) if chroms is None else [chroms] if isinstance(chroms, str) else list(chroms)
    unknown = [chrom for chrom in wanted if chrom not in source.chromnames]
    if unknown or not wanted:
        raise KeyError(
            f"{name} has no chromosomes {unknown}; it has {_some(source.chromnames)}"
            + (" (with or without 'chr'?)." if unknown else ".")
        )
    extents = [source.extent(chrom) for chrom in wanted]
    sizes = [last - first for first, last in extents]
    # Where each bin of the file is in the result; -1 where it is not.
    place = np.full(source.info["nbins"], -1, np.int64)
    for offset, (first, last) in zip(np.cumsum([0, *sizes]), extents, strict=False):
        place[first:last] = offset + np.arange(last - first)
    code = np.repeat(np.arange(len(wanted)), sizes)
    total = int(np.sum(sizes))
    counts = _read_pixels(source, extents, place, code, total, trans, name)
    table = pd.concat([source.bins()[first:last] for first, last in extents], ignore_index=True)
    bins = bins_table(pd.Categorical.from_codes(code, wanted), table["start"].to_numpy(), table["end"].to_numpy())
    for column in table.columns:
        if column not in ("chrom", "start", "end"):
            bins["contact_weight" if column == "weight" else str(column)] = table[column].to_numpy()
    if "contact_weight" in bins:
        bins["contact_bad_bin"] = ~np.isfinite(bins["contact_weight"].to_numpy(float))
    result = contacts_object(bins, counts, storage=storage)
    assembly = str(source.info.get("genome-assembly", "unknown"))
    if assembly not in ("unknown", "None"):
        result.uns["genome_assembly"] = assembly
    return result


def _read_pixels(source, extents, place, code, total, trans, name) -> sp.csr_array:
    rows, columns, values = [], [], []
    with source.open("r") as group:
        index = group["indexes/bin1_offset"]
        pixels = group["pixels"]
        symmetric = source.storage_mode == "symmetric-upper"
        for first, last in extents:
            offsets = index[first : last + 1]
            for low in range(int(offsets[0]), int(offsets[-1]), _BLOCK):
                high = min(low + _BLOCK, int(offsets[-1]))
                row, column = (place[pixels[field][low:high].astype(np.int64)] for field in ("bin1_id", "bin2_id"))
                kept = column >= 0
                if not trans:
                    kept &= code[row] == code[np.maximum(column, 0)]
                row, column, value = row[kept], column[kept], pixels["count"][low:high][kept]
                if not symmetric:
                    _check_square(row, column, name)
                rows.append(np.minimum(row, column))
                columns.append(np.maximum(row, column))
                values.append(value)
    joined = [np.concatenate(parts) if parts else np.empty(0) for parts in (rows, columns, values)]
    value = counts_or_values(joined[2], name)
    kept = value != 0
    pair = (joined[0][kept].astype(np.int64), joined[1][kept].astype(np.int64))
    return sp.csr_array(sp.coo_array((value[kept], pair), shape=(total, total)))


def _check_square(row: np.ndarray, column: np.ndarray, name: str) -> None:
    if (row > column).any():
        raise ValueError(f"{name} stores a map that is not symmetric (storage mode 'square'): that cannot be analysed.")
