"""Contacts between genomic bins, out of ``.obsp`` or ``.varp``."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.genome_axis import GenomeAxis, read_genome_axis
from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.tables import in_memory, numbers_or_nan
from diffbio_sc.genome.chrom_sizes import match_chromosomes
from diffbio_sc.genome.contact_map import ContactMap
from diffbio_sc.numerics.genome.pixels import cis_rows, storage_of, upper_triangle

if TYPE_CHECKING:
    from anndata import AnnData

_LARGEST_GRID = 20  # times the bins that are there
_STORAGES = ("symmetric", "upper")
_OTHER_WEIGHTS = ("weight", "kr", "vc", "vc_sqrt", "scale", "ice", "bias")


class Contacts(NamedTuple):
    """A contact map and where its bins lie in the object.

    Attributes
    ----------
    map
        Bins in genomic order; bins that the object lacks between others of their chromosome are there, empty.
    axis
        Axis of the object that the bins lie along.
    order
        Position along that axis of each bin of the map, -1 where the object lacks it.
    place
        Bin of the map of each position along the axis.
    storage
        Which triangles the object holds.
    """

    map: ContactMap
    axis: GenomeAxis
    order: np.ndarray
    place: np.ndarray
    storage: str

    def to_axis(self, values: np.ndarray) -> np.ndarray:
        """Values of the map's bins in the order of the object's axis."""
        return np.asarray(values)[self.place]

    def to_map(self, values: np.ndarray, missing: Any = np.nan) -> np.ndarray:
        """Values along the object's axis in the order of the map's bins, ``missing`` where the object lacks one."""
        values = np.asarray(values)
        result = np.full((self.map.n_bins, *values.shape[1:]), missing, np.result_type(values, type(missing)))
        result[self.place] = values
        return result


def read_contacts(
    adata: AnnData,
    key: str = "contacts",
    *,
    axis: Literal["var", "obs"] | None = None,
    allow_fractional: bool = False,
) -> Contacts:
    """Take a contact map out of ``adata.obsp[key]`` or ``adata.varp[key]``, checked.

    Parameters
    ----------
    adata
        Object whose genome axis (``chrom``, ``start``, ``end``) has a square matrix of counts at ``key``.
    key
        Key of ``.obsp`` or ``.varp``.
    axis
        Which axis, if both could be meant.
    allow_fractional
        Accept values that are no whole numbers, with a warning.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If there is no such matrix, or no axis has ``chrom``, ``start`` and ``end``.
    ValueError
        If bins are of different widths or off their grid, or values are missing, negative, fractional or not symmetric.
    """
    require_anndata(adata)
    found = [side for side in ("obs", "var") if key in getattr(adata, f"{side}p")]
    if not found:
        raise KeyError(
            f"neither adata.obsp nor adata.varp has {key!r}; adata.obsp: {list(adata.obsp.keys())}, adata.varp: "
            f"{list(adata.varp.keys())}. It must hold raw contact counts, bins x bins; dbio.io.read_cool reads them."
        )
    if axis is None and len(found) == 2:
        raise ValueError(f"adata.obsp and adata.varp both have {key!r}; pass axis='obs' or axis='var'.")
    side: Any = axis or found[0]
    if side not in found:
        raise KeyError(f"adata.{side}p has no {key!r}, it is in adata.{found[0]}p; pass axis={found[0]!r}.")
    name = f"adata.{side}p[{key!r}]"
    bins = read_genome_axis(adata, axis=side)
    resolution = _resolution(bins, side)
    codes, start, end, place = _grid(bins, resolution, side)
    matrix = _matrix(getattr(adata, f"{side}p")[key], name, allow_fractional)
    try:
        storage = storage_of(matrix, place)
    except ValueError as error:
        raise ValueError(
            f"{name} must be symmetric or hold one triangle only: {error}. "
            "If it counts ordered pairs, pass matrix + matrix.T (and halve its diagonal)."
        ) from None
    stated = in_memory(adata.uns.get(f"{key}_storage"))
    stated = stated.get("storage") if isinstance(stated, dict) else None
    if stated is not None and stated not in _STORAGES:
        raise ValueError(f"adata.uns['{key}_storage']['storage'] must be one of {list(_STORAGES)}, found {stated!r}.")
    if stated == "symmetric" and storage in ("upper", "lower"):
        raise ValueError(f"adata.uns['{key}_storage'] says symmetric, but {name} holds the {storage} triangle alone.")
    counts = upper_triangle(matrix, storage, place, len(codes))
    order = np.full(len(codes), -1, np.int64)
    order[place] = np.arange(len(bins))
    contact_map = ContactMap(counts, codes, tuple(map(str, bins.chromosomes)), start, end)
    return Contacts(contact_map, bins, order, place, storage)


def _resolution(bins: GenomeAxis, side: str) -> int:
    table = bins.table
    width = (table["end"] - table["start"]).to_numpy()
    resolution = int(width.max())
    start = table["start"].to_numpy()
    last = np.append(np.diff(table["chrom"].cat.codes.to_numpy()[bins.order]) != 0, True)
    short = np.flatnonzero((width[bins.order] != resolution) & ~last)
    off = np.flatnonzero(start % resolution != 0)
    if len(short) or len(off):
        first = bins.order[short[0]] if len(short) else off[0]
        raise ValueError(
            f"contacts need bins of one width on its grid, the last of a chromosome excepted; adata.{side} has "
            f"{len(short)} shorter bins and {len(off)} that start off the grid of {resolution} bp, the first "
            f"{str(table.index[first])!r} ({table['chrom'].iloc[first]}:{start[first]}-{table['end'].iloc[first]}). "
            "Restriction fragments must be binned first."
        )
    return resolution


def _grid(bins: GenomeAxis, resolution: int, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Complete the bins of each chromosome, and say which of them each bin of the object is."""
    codes = bins.table["chrom"].cat.codes.to_numpy().astype(np.int64)
    index = bins.table["start"].to_numpy() // resolution
    number = len(bins.chromosomes)
    first, last = np.full(number, np.iinfo(np.int64).max), np.full(number, -1)
    np.minimum.at(first, codes, index)
    np.maximum.at(last, codes, index)
    size = last - first + 1
    if size.sum() > _LARGEST_GRID * len(bins) + 1000:
        raise ValueError(
            f"adata.{side} has {len(bins)} bins of {resolution} bp, but {size.sum()} would be needed without gaps "
            "between them. Pass the whole map, or one region of it."
        )
    offset = np.cumsum(size) - size
    place = offset[codes] + index - first[codes]
    chrom = np.repeat(np.arange(number, dtype=np.int32), size)
    start = (np.arange(size.sum()) - np.repeat(offset - first, size)) * resolution
    end = start + resolution
    end[place] = bins.table["end"].to_numpy()
    return chrom, start, end, place


def _matrix(values: Any, name: str, allow_fractional: bool) -> sp.csr_array:
    if hasattr(values, "compute"):
        values = values.compute()
    if not sp.issparse(values):
        values = np.asarray(values)
    if values.dtype.kind not in "iufb":
        raise TypeError(f"{name} must hold numbers, found dtype {values.dtype}.")
    matrix = sp.csr_array(values)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    data = matrix.data
    if data.dtype.kind == "f":
        if not np.isfinite(data).all():
            raise ValueError(f"{name} must be finite, found {int((~np.isfinite(data)).sum())} NaN or infinite values.")
        fractional = data != np.floor(data)
        if fractional.any():
            if not allow_fractional:
                raise ValueError(
                    f"{name} must hold raw counts, found {int(fractional.sum())} fractional values (the first "
                    f"{data[fractional][0]:.6g}): these look balanced or normalised. Pass the key of the raw counts, "
                    "or allow_fractional=True where a method needs no counting noise."
                )
            warnings.warn(
                f"{name} holds fractional values: p-values, which suppose counts, are wrong.", UserWarning, stacklevel=4
            )
    if len(data) and data.min() < 0:
        raise ValueError(f"{name} must not be negative, smallest value: {data.min()}.")
    if len(data) and not data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    if data.dtype.kind == "f" and allow_fractional:
        return sp.csr_array(matrix, dtype=np.float64)
    largest = int(data.max()) if len(data) else 0
    return sp.csr_array(matrix, dtype=np.int32 if largest <= np.iinfo(np.int32).max else np.int64)


def read_weights(adata: AnnData, contacts: Contacts, key: str = "contact_weight", divisive: bool = False) -> np.ndarray:
    """Take balancing weights out of a column of the genome axis, in the order of the map, NaN for bins left out.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If no weight is above 0, or some are negative.
    """
    side = contacts.axis.axis
    table = getattr(adata, side)
    if key not in table:
        others = [str(name) for name in table.columns if str(name).lower() in _OTHER_WEIGHTS]
        hint = f" Columns that may hold weights: {others}; pass weight_key." if others else ""
        raise KeyError(
            f"adata.{side} has no column {key!r}: the map is not balanced. Run dbio.tl.balance(adata) first, or "
            f"dbio.tl.contacts, which runs all steps.{hint}"
        )
    values = numbers_or_nan(table, key)
    if (values < 0).any() or np.isinf(values).any():
        raise ValueError(f"adata.{side}[{key!r}] must hold finite weights, not negative; smallest {np.nanmin(values)}.")
    values = np.where(values > 0, values, np.nan)
    if not np.isfinite(values).any():
        raise ValueError(f"adata.{side}[{key!r}] holds no weight above 0: every bin would be left out.")
    weights = contacts.to_map(1.0 / values if divisive else values)
    _check_direction(contacts, weights, f"adata.{side}[{key!r}]", divisive)
    return weights


def _check_direction(contacts: Contacts, weights: np.ndarray, name: str, divisive: bool) -> None:
    """Multiplicative weights fall with a bin's contacts; those of Juicer, which are divided by, rise."""
    total, _ = cis_rows(contacts.map.counts, 0, contacts.map.n_bins).marginals()
    good = np.isfinite(weights) & (total > 0)
    if good.sum() < 30 or np.ptp(weights[good]) == 0:
        return
    if np.corrcoef(np.log(weights[good]), np.log(total[good]))[0, 1] > 0.5:
        warnings.warn(
            f"{name} {'falls' if divisive else 'rises'} with the contacts of a bin: are these weights that counts are "
            f"{'multiplied with' if divisive else 'divided by, as in .hic files'}? Pass divisive={not divisive} then.",
            UserWarning,
            stacklevel=4,
        )


def read_breaks(contacts: Contacts, breaks: Any) -> np.ndarray | None:
    """Bins of a map at which chromosomes are cut, from a mapping of chromosome to position (or positions) in bp."""
    if breaks is None:
        return None
    if not hasattr(breaks, "items"):
        raise TypeError(f"breaks must map chromosomes to positions in base pairs, found {type(breaks).__name__}.")
    result = []
    unknown = [name for name in breaks if str(name) not in contacts.map.chrom_names]
    if len(unknown) == len(breaks) and len(breaks):
        raise ValueError(
            f"breaks and the map have no chromosome in common: {unknown[:5]} and {list(contacts.map.chrom_names)[:5]}."
        )
    for name, positions in breaks.items():
        if str(name) not in unknown and str(name) in contacts.map.chromosomes():
            span = contacts.map.span(str(name))
            starts = contacts.map.start[span]
            result += (span.start + np.searchsorted(starts, np.atleast_1d(positions))).tolist()
    return np.array(result, np.int64)


def read_track(adata: AnnData, contacts: Contacts, track: Any) -> tuple[np.ndarray, str]:
    """Values of a track for the bins of a map, NaN where it has none, and its name.

    Parameters
    ----------
    adata
        Object.
    contacts
        Its map.
    track
        A column of the genome axis; a name along the other axis, whose values in ``X`` are taken; an array along the
        genome axis; or a table with ``chrom``, ``start``, ``end`` and, if it has a fourth numeric column, values, of
        which the mean over a bin's overlaps is taken. A table without values gives the number of intervals that start
        in a bin, as of genes.
    """
    axis = contacts.axis
    table = getattr(adata, axis.axis)
    other = axis.track_names(adata)
    if isinstance(track, str):
        if track in table:
            values = numbers_or_nan(table, track)
        elif track in other:
            row = axis.signal(adata).take(np.flatnonzero(other == track)[:1])
            values = np.asarray(row, np.float64).ravel()
        else:
            raise KeyError(
                f"track {track!r} is neither a column of adata.{axis.axis} ({list(map(str, table.columns))}) nor a "
                f"name along the other axis ({list(map(str, other[:5]))})."
            )
        name = track
    elif isinstance(track, pd.DataFrame):
        return _binned(contacts.map, track)
    else:
        values, name = np.asarray(track, np.float64).ravel(), "array"
        if len(values) != len(axis):
            raise ValueError(
                f"track must have a value for each of the {len(axis)} bins of adata.{axis.axis}, found {len(values)}. "
                "A track of another bin size is taken as a table with chrom, start, end and value."
            )
    if not np.isfinite(values).any():
        raise ValueError(f"track {name!r} has no finite value.")
    return contacts.to_map(np.where(np.isfinite(values), values, np.nan)), name


def _binned(contact_map: ContactMap, table: pd.DataFrame) -> tuple[np.ndarray, str]:
    missing = [column for column in ("chrom", "start", "end") if column not in table]
    if missing:
        raise KeyError(f"the track's table has no columns {missing}; columns: {list(map(str, table.columns))}.")
    numeric = [
        column
        for column in table.columns
        if column not in ("chrom", "start", "end") and pd.api.types.is_numeric_dtype(table[column])
    ]
    chrom = table["chrom"].astype(str).to_numpy(dtype=object)
    match_chromosomes(
        list(contact_map.chrom_names), list(dict.fromkeys(chrom)), left_name="the map", right_name="the track"
    )
    start, end = (pd.to_numeric(table[column]).to_numpy(np.int64) for column in ("start", "end"))
    resolution, n = contact_map.resolution, contact_map.n_bins
    total, weight = np.zeros(n), np.zeros(n)
    values = table[numeric[0]].to_numpy(np.float64) if numeric else np.ones(len(table))
    for name in contact_map.chromosomes():
        span = contact_map.span(name)
        base = int(contact_map.start[span.start]) // resolution
        own = (chrom == name) & np.isfinite(values)
        first = start[own] // resolution - base
        last = first if not numeric else (np.maximum(end[own], start[own] + 1) - 1) // resolution - base
        length = np.maximum(last - first + 1, 0)
        row = np.repeat(np.arange(own.sum()), length)
        position = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
        inside = (position >= 0) & (position < span.stop - span.start)
        row, position = row[inside], position[inside] + span.start
        low = np.maximum(start[own][row], contact_map.start[position])
        overlap = np.minimum(end[own][row], contact_map.end[position]) - low if numeric else np.ones(len(row))
        total += np.bincount(position, values[own][row] * overlap, n)
        weight += np.bincount(position, overlap, n)
    if not numeric:
        present = np.isin(
            np.array(contact_map.chrom_names, dtype=object)[contact_map.chrom], list(dict.fromkeys(chrom))
        )
        return np.where(present, total, np.nan), "intervals"
    with np.errstate(invalid="ignore"):
        return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan), str(numeric[0])
