"""The axis of an AnnData along which genomic bins or regions lie, whichever of the two it is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.matrix import read_counts, require_anndata
from diffbio_sc._anndata.results import write_results
from diffbio_sc._anndata.tables import read_table
from diffbio_sc._checks import name_heads
from diffbio_sc.blocks.matrix import CountMatrix, InMemory, as_count_matrix, as_working, dense_block
from diffbio_sc.blocks.steps import SumsOfColumnGroups
from diffbio_sc.genome.axis import BinAxis, order_bins
from diffbio_sc.genome.signal import Signal

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = ("chrom", "start", "end")

REGION = re.compile(r"^(?P<chrom>.+?)[:_-](?P<start>[\d,]+)[_-](?P<end>[\d,]+)$")
"""Names such as ``chr1:100-200``, ``chr1-100-200`` and ``chr1_100_200``."""

# What other packages call the three columns.
_OTHER_NAMES = {
    "chrom": ("chr", "chromosome", "seqname", "seqnames", "contig", "Chromosome", "Chr", "#chrom"),
    "start": ("chromstart", "chromStart", "Start", "chr_start", "starts"),
    "end": ("chromend", "chromEnd", "stop", "End", "chr_end", "ends"),
}
_LARGEST = 2**40 - 1  # no position of a genome is larger


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GenomeAxis(BinAxis):
    """Bins or regions along one axis of an AnnData."""

    axis: Literal["var", "obs"]
    """Which axis it is."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """``chrom`` (categorical, in order of first appearance), ``start`` and ``end`` (int64) of each bin."""
        chrom = pd.Categorical.from_codes(self.code, self.chromosomes)
        return pd.DataFrame({"chrom": chrom, "start": self.start, "end": self.end}, index=self.names)

    def track_names(self, adata: AnnData) -> pd.Index:
        """Names along the other axis: samples, cells or tracks."""
        return adata.obs_names if self.axis == "var" else adata.var_names

    def track_table(self, adata: AnnData) -> pd.DataFrame:
        """Table of the other axis."""
        return adata.obs if self.axis == "var" else adata.var

    def tracks(self, adata: AnnData, layer: str | None = None, **options: Any) -> CountMatrix:
        """Counts as a matrix of (tracks, bins), whichever way the object holds them.

        Its ``blocks`` are blocks of tracks over all bins in the order of the axis. ``options`` go to
        :func:`~diffbio_sc._anndata.read_counts`, which checks the values.
        """
        counts = read_counts(adata, layer=layer, **options)
        return counts if self.axis == "var" else Transposed(counts)

    def signal(self, adata: AnnData, layer: str | None = None) -> CountMatrix:
        """Values of any kind, not checked to be counts, as a matrix of (tracks, bins)."""
        if layer is not None and layer not in adata.layers:
            raise KeyError(f"adata.layers has no {layer!r}; layers: {[str(key) for key in adata.layers.keys()]}.")
        values = as_count_matrix(adata.X if layer is None else adata.layers[layer])
        return values if self.axis == "var" else Transposed(values)

    def write(
        self,
        adata: AnnData,
        *,
        columns: Mapping[str, Any] | None = None,
        matrices: Mapping[str, Any] | None = None,
        track_columns: Mapping[str, Any] | None = None,
        track_matrices: Mapping[str, Any] | None = None,
        pairs: Mapping[str, Any] | None = None,
        layers: Mapping[str, Any] | None = None,
        uns: Mapping[str, Any] | None = None,
    ) -> None:
        """Write results on the side they belong to, all or nothing.

        Parameters
        ----------
        adata
            Object.
        columns, matrices
            Values for each bin: columns of ``.var`` and arrays of ``.varm``, or of ``.obs`` and ``.obsm``.
        track_columns, track_matrices
            The same for each track.
        pairs
            Arrays of (bins, bins), such as contacts: ``.varp`` or ``.obsp``.
        layers
            Arrays of (tracks, bins), dense or sparse; stored as the object lies.
        uns
            Entries of ``.uns``.
        """
        here, there = ("var", "obs") if self.axis == "var" else ("obs", "var")
        fields = {
            here: columns,
            f"{here}m": matrices,
            f"{here}p": pairs,
            there: track_columns,
            f"{there}m": track_matrices,
            "layers": {key: self._as_stored(value) for key, value in (layers or {}).items()},
            "uns": uns,
        }
        write_results(adata, **{key: values for key, values in fields.items() if values})

    def _as_stored(self, layer: Any) -> Any:
        if self.axis == "var" or layer is None:
            return layer
        return sp.csr_array(layer.T) if sp.issparse(layer) else np.ascontiguousarray(layer.T)


class Transposed(CountMatrix):
    """Counts of (bins, tracks) as (tracks, bins)."""

    def __init__(self, parent: CountMatrix):
        if isinstance(parent, InMemory) and sp.issparse(parent.matrix):
            # Tracks of a CSR matrix of bins are all over it: it is turned once.
            parent = InMemory(sp.csc_array(parent.matrix))
        self.parent = parent
        self.shape, self.dtype = (parent.shape[1], parent.shape[0]), parent.dtype

    def read(self, start: int, stop: int) -> Any:
        """Tracks from ``start`` to before ``stop``."""
        indices = np.arange(start, stop)
        if isinstance(self.parent, InMemory) and not sp.issparse(self.parent.matrix):
            return as_working(np.ascontiguousarray(self.parent.matrix[:, indices].T))
        return as_working(sp.csr_array(self.parent.columns(indices).T))

    def take(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 tracks at ``rows``."""
        if isinstance(self.parent, InMemory) and not sp.issparse(self.parent.matrix):
            return dense_block(self.parent.matrix[:, np.asarray(rows)].T, columns)
        return dense_block(self.parent.columns(np.asarray(rows)).T.tocsr(), columns)

    def sum_by_group(self, codes: np.ndarray, groups: int) -> np.ndarray:
        """Sum of the tracks of each group (groups, bins), in float64; tracks of code -1 are left out."""
        if isinstance(self.parent, InMemory):
            return super().sum_by_group(codes, groups)
        # What is in a file or a graph is gone through once, not once for each block of tracks.
        return self.parent.reduce(SumsOfColumnGroups(codes, groups))[0].T

    def column_sums(self) -> np.ndarray:
        """Sum of each bin over the tracks, in float64."""
        return self.parent.row_sums()

    def row_sums(self) -> np.ndarray:
        """Sum of each track, in float64."""
        return self.parent.column_sums()


def read_genome_axis(
    adata: AnnData,
    *,
    axis: Literal["var", "obs"] | None = None,
    name: str = "adata",
    allow_overlaps: bool = False,
) -> GenomeAxis:
    """Find the axis whose table has columns ``chrom``, ``start`` and ``end``, and check them.

    Parameters
    ----------
    adata
        Object.
    axis
        Which axis, if both tables have the columns.
    name
        What messages call the object.
    allow_overlaps
        Accept bins that overlap, for functions that take each of them by itself.

    Raises
    ------
    TypeError
        If the object is no AnnData.
    KeyError
        If no axis, or not the one asked for, has the three columns.
    ValueError
        If both have them, or values are missing or no whole numbers, or bins end before they start, overlap or occur
        twice.
    """
    require_anndata(adata, name)
    if axis not in (None, "var", "obs"):
        raise ValueError(f"axis must be 'var', 'obs' or None, found {axis!r}.")
    found = [side for side in ("var", "obs") if set(COLUMNS) <= set(getattr(adata, side).columns)]
    if axis is None and len(found) == 2:
        raise ValueError(
            f"both {name}.var and {name}.obs have the columns {list(COLUMNS)}; pass axis='var' or axis='obs'."
        )
    if (axis or (found[0] if found else None)) not in found:
        raise KeyError(_missing(adata, [axis] if axis else ["var", "obs"], name))
    side: Any = axis or found[0]
    table = read_table(getattr(adata, side), COLUMNS)
    return make_genome_axis(table, axis=side, name=f"{name}.{side}", allow_overlaps=allow_overlaps)


def make_genome_axis(
    table: pd.DataFrame, *, axis: Literal["var", "obs"], name: str, allow_overlaps: bool = False
) -> GenomeAxis:
    """Check a table with columns ``chrom``, ``start`` and ``end``, and order its bins along the genome."""
    if not len(table):
        raise ValueError(f"{name} has no bins: it is empty.")
    chrom = table["chrom"]
    if chrom.isna().any():
        bad = table.index[chrom.isna()]
        raise ValueError(f"{name}['chrom'] must name a chromosome for each bin, missing for {name_heads(bad)}.")
    if isinstance(chrom.dtype, pd.CategoricalDtype):  # millions of bins: names are turned to text once each
        codes, used = pd.factorize(np.asarray(chrom.cat.codes.array))
        chromosomes = [str(name) for name in chrom.cat.categories[used]]
    if not isinstance(chrom.dtype, pd.CategoricalDtype) or len(set(chromosomes)) < len(chromosomes):  # 1 and "1"
        codes, names = pd.factorize(chrom.astype(str).to_numpy(dtype=object))
        chromosomes = list(names)
    start, end = (_positions(table, key, name) for key in ("start", "end"))
    bins = order_bins(
        codes.astype(np.int32), start, end, chromosomes, names=table.index, name=name, allow_overlaps=allow_overlaps
    )
    return GenomeAxis(axis=axis, **{field.name: getattr(bins, field.name) for field in dataclasses.fields(bins)})


def _positions(table: pd.DataFrame, key: str, name: str) -> np.ndarray:
    """Whole numbers of a column of any type that can hold them."""
    column = table[key]
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iu":
        values = np.asarray(column.array)
        bad = values > _LARGEST
    else:
        values = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        bad = ~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values) > _LARGEST)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{name}[{key!r}] must hold whole numbers, found {column.iloc[first]!r} at "
            f"{str(table.index[first])!r} ({int(bad.sum())} such values)."
        )
    return values.astype(np.int64)


def read_track_signal(adata: AnnData, *, track: str | None, layer: str | None) -> Signal:
    """One track of an AnnData as runs of its non-zero bins.

    Parameters
    ----------
    adata
        Object with a genome axis.
    track
        Name along the other axis; may be left out if there is one track.
    layer
        Layer of the values; default ``X``.

    Raises
    ------
    KeyError
        If there is no such track or layer.
    ValueError
        If there are several tracks and none is named.
    """
    axis = read_genome_axis(adata)
    names = axis.track_names(adata)
    if track is None and len(names) != 1:
        raise ValueError(f"adata has {len(names)} tracks; pass track=..., one of {name_heads(names)}.")
    position = 0 if track is None else int(names.get_indexer([track])[0])
    if position < 0:
        raise KeyError(f"adata has no track {track!r}; tracks: {name_heads(names)}.")
    values = axis.signal(adata, layer).take(np.array([position]))[0].astype(np.float64)
    # Genomic order brings each chromosome's bins together.
    rows = axis.order[values[axis.order] != 0]
    borders = np.searchsorted(axis.code[rows], np.arange(len(axis.chromosomes) + 1))
    arrays = {
        chromosome: (axis.start[chosen], axis.end[chosen], values[chosen])
        for chromosome, first, last in zip(axis.chromosomes, borders[:-1], borders[1:], strict=True)
        for chosen in [rows[first:last]]
    }
    return Signal(arrays, sizes=axis.extent(), name=f"track {names[position]!r}")


def _missing(adata: AnnData, sides: list[str], name: str) -> str:
    """What is there in place of the three columns, and how to make them."""
    have = "; ".join(f"{name}.{side}: {list(map(str, getattr(adata, side).columns))}" for side in sides)
    message = f"expected columns {list(COLUMNS)} in {' or '.join(f'{name}.{side}' for side in sides)}, found {have}."
    for side in sides:
        columns = list(getattr(adata, side).columns)
        rename = {
            other: key
            for key, others in _OTHER_NAMES.items()
            if key not in columns
            for other in [next((other for other in others if other in columns), None)]
            if other is not None
        }
        if rename and set(rename.values()) | set(columns) >= set(COLUMNS):
            message += f" Rename them: {name}.{side} = {name}.{side}.rename(columns={rename})."
        names = getattr(adata, f"{side}_names")
        if len(names) and REGION.match(str(names[0])):
            message += (
                f" The names look like regions ({str(names[0])!r}): dbio.pp.parse_regions({name}) writes the columns."
            )
    return message
