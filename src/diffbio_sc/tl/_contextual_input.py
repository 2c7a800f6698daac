"""Everything that :func:`diffbio_sc.tl.contextual` trains with, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffbio_sc._anndata.contextual_data import (
    Context,
    read_binary_labels,
    read_context,
    read_region_tokens,
    read_split,
    settle_mode,
    warn_of_labels,
)
from diffbio_sc._anndata.contextual_model import ContextualModel
from diffbio_sc._anndata.genome_axis import GenomeAxis
from diffbio_sc._anndata.names import require_unique
from diffbio_sc._anndata.region_axis import read_region_axis, warn_of_names, warn_of_repeats
from diffbio_sc._anndata.tables import read_labels
from diffbio_sc._checks import name_heads
from diffbio_sc.genome.region_set import RegionSet

if TYPE_CHECKING:
    from anndata import AnnData


class ContextualInput(NamedTuple):
    """What a model is trained with.

    Attributes
    ----------
    regions
        Regions.
    cell_types
        Names of all cell types.
    tokens
        Sequences.
    labels
        (regions, cell types): 0, 1, or NaN where not known.
    labelled
        Which cell types have labels; of the others there is expression only.
    split, split_source
        Split of each region (-1: left out), and what made it.
    context
        Expression of factors in all cell types; None without.
    mode
        Inputs that the model uses.
    track, contacts
        Labels along windows (regions, cell types, tokens) and contact maps (regions, tokens, tokens); None without.
    neighbours, groups
        Places of the regions, and names of their kinds, of a model with neighbourhood; None without.
    """

    regions: GenomeAxis
    cell_types: list[str]
    tokens: np.ndarray
    labels: np.ndarray
    labelled: np.ndarray
    split: np.ndarray
    split_source: str
    context: Context | None
    mode: str
    track: np.ndarray | None
    contacts: np.ndarray | None
    neighbours: RegionSet | None
    groups: list[str] | None


def read_contextual_input(
    adata: AnnData,
    *,
    fasta: Any,
    sequences: str,
    tf_context: str | None,
    track: str | None,
    contacts: str | None,
    mode: Any,
    neighbourhood: bool | str,
    split: str | Mapping[str, Any] | None,
    layer: str | None,
    axis: Any,
) -> ContextualInput:
    """Read and check; warnings point to the caller of the public function."""
    regions = read_region_axis(adata, axis=axis)
    cell_types = [str(name) for name in regions.track_names(adata)]
    require_unique(cell_types, "names of cell types", "Make them unique first, or add up those of one name.")
    tokens = read_region_tokens(adata, regions, sequences, fasta)
    tracks = None if track is None else _read_track(adata, regions, track, len(cell_types), tokens.shape[1])
    maps = None if contacts is None else _read_window_maps(adata, regions, contacts, tracks)
    labels = read_binary_labels(adata, regions, layer) if tracks is None else _any_token(tracks)
    context = read_context(
        adata,
        regions,
        tf_context,
        required=tf_context is not None and (mode in ("tf_context", "tf_plus_chromatin") or tf_context != "tf_context"),
    )
    mode = settle_mode(mode, context, maps is not None, len(cell_types), stacklevel=4)
    if mode == "sequence_only":
        context = None
    labelled = ~np.isnan(labels).all(axis=0)
    _require_expression(cell_types, labelled, context)
    codes, source = read_split(adata, regions, split, stacklevel=4)
    warn_of_names(regions, stacklevel=4)
    warn_of_repeats(regions, stacklevel=4)
    named = [name for name, has in zip(cell_types, labelled, strict=True) if has]
    warn_of_labels(labels[codes == 0][:, labelled], named, stacklevel=4)
    neighbours, groups = (None, None) if neighbourhood is False else read_neighbourhood(adata, regions, neighbourhood)
    return ContextualInput(
        regions, cell_types, tokens, labels, labelled, codes, source, context, mode, tracks, maps, neighbours, groups
    )


def read_neighbourhood(
    adata: AnnData, regions: GenomeAxis, neighbourhood: bool | str, known: list[str] | None = None
) -> tuple[RegionSet, list[str]]:
    """Places and kinds of regions; kinds in the order of a model's, if ``known``.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a kind is missing, or one that the model does not know.
    """
    position = (regions.start + regions.end) // 2
    if neighbourhood is True:
        return RegionSet(regions.code.astype(np.int64), position, None), []
    side = f"adata.{regions.axis}"
    codes, names = read_labels(getattr(adata, regions.axis), str(neighbourhood), name=side)
    if (codes < 0).any():
        bad = [regions.names[row] for row in np.flatnonzero(codes < 0)[:5]]
        raise ValueError(f"{side}[{neighbourhood!r}] must name the kind of each region, missing for {name_heads(bad)}.")
    if known is not None:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"{side}[{neighbourhood!r}] has kinds that the model does not know: {unknown}; it knows {known}."
            )
        codes = np.array([known.index(name) for name in names])[codes]
        names = known
    return RegionSet(regions.code.astype(np.int64), position, codes.astype(np.int64)), names


def _require_expression(cell_types: list[str], labelled: np.ndarray, context: Context | None) -> None:
    """A cell type without labels can only be predicted from its expression."""
    without = ~labelled if context is None else ~labelled & ~context.known
    if without.any():
        names = [name for name, lacks in zip(cell_types, without, strict=True) if lacks]
        raise ValueError(
            f"cell types {name_heads(names)} have no label, and no expression to predict them from: leave them out, or "
            "give them expression with dbio.pp.tf_context."
        )


def _stored(adata: AnnData, regions: GenomeAxis, key: str, argument: str) -> tuple[np.ndarray, str]:
    field = f"{regions.axis}m"
    stored = getattr(adata, field)
    if key not in stored:
        raise KeyError(f"adata.{field} has no {key!r} ({argument}); keys: {[str(other) for other in stored]}.")
    values = np.asarray(stored[key])
    if values.dtype.kind not in "biuf":
        raise ValueError(f"adata.{field}[{key!r}] must hold numbers, found dtype {values.dtype}.")
    return values, f"adata.{field}[{key!r}]"


def _read_track(adata: AnnData, regions: GenomeAxis, key: str, n_cell_types: int, width: int) -> np.ndarray:
    values, where = _stored(adata, regions, key, "track")
    if values.ndim != 3 or values.shape[1] != n_cell_types:
        raise ValueError(
            f"{where} must have shape (regions, {n_cell_types} cell types, tokens), found {tuple(values.shape)}."
        )
    if values.shape[2] < 2:
        raise ValueError(f"{where} has {values.shape[2]} tokens; a window needs at least two, else leave track out.")
    if width % values.shape[2]:
        raise ValueError(
            f"{where} has {values.shape[2]} tokens, which do not divide the {width} bases of a region: take a width "
            "that is a multiple of the tokens."
        )
    values = values.astype(np.float32)
    bad = ~((values == 0) | (values == 1) | np.isnan(values))
    if bad.any():
        place = np.argwhere(bad)[0]
        raise ValueError(
            f"{where} must hold 0, 1 or NaN (not known), found {values[tuple(place)]:.6g} at region "
            f"{str(regions.names[place[0]])!r}, cell type {place[1]}, token {place[2]} ({int(bad.sum())} such values)."
        )
    unknown = np.isnan(values)
    partly = unknown.any(axis=(0, 2)) & ~unknown.all(axis=(0, 2))
    if unknown.all() or partly.any():
        raise ValueError(
            f"{where} must be known, found NaN in {int(unknown.sum())} of {values.size} values: leave those "
            "regions or cell types out. A cell type that is NaN throughout is predicted from its expression."
        )
    return values


def _read_window_maps(adata: AnnData, regions: GenomeAxis, key: str, track: np.ndarray | None) -> np.ndarray:
    if track is None:
        raise ValueError("contacts are between the tokens of a window: pass track=... too, the labels of these tokens.")
    return read_maps(adata, regions, key, (len(track), track.shape[2]))


def read_input_maps(adata: AnnData, regions: GenomeAxis, fitted: ContextualModel, key: str | None) -> np.ndarray | None:
    """Contact maps of all regions, of a model that takes them as an input; None of others.

    Raises
    ------
    ValueError
        If the model takes none and a key is given, or the other way round.
    """
    if fitted.kind == "regions" or not fitted.model.operator.config.use_contact_input:
        if key is not None:
            raise ValueError("the model takes no contacts as an input: leave contacts out.")
        return None
    if key is None:
        raise ValueError("the model takes contacts as an input: pass contacts=..., the key of a map of each region.")
    n_tokens = fitted.width // fitted.model.operator.config.token_width
    return read_maps(adata, regions, key, (len(regions.code), n_tokens))


def read_maps(adata: AnnData, regions: GenomeAxis, key: str, size: tuple[int, int]) -> np.ndarray:
    """Contact maps of so many regions and tokens, symmetric, between 0 and 1; NaN is no contact.

    Raises
    ------
    KeyError
        If there is no such key.
    ValueError
        If shape or values are others.
    """
    values, where = _stored(adata, regions, key, "contacts")
    n_regions, n_tokens = size
    if values.shape != (n_regions, n_tokens, n_tokens):
        raise ValueError(
            f"{where} must have shape {(n_regions, n_tokens, n_tokens)}, a map of the tokens of each region, found "
            f"{tuple(values.shape)}. Maps of another resolution must be brought to that of track first."
        )
    values = values.astype(np.float32)
    upper = np.triu(np.ones((n_tokens, n_tokens), bool), 1)
    if not values[:, upper.T].any() and values[:, upper].any():  # one triangle is given
        values = values + np.triu(values, 1).transpose(0, 2, 1)
    missing = np.isnan(values)
    if missing.any():  # bins that were masked: no contact is known of them
        values = np.where(missing, 0.0, values)
    lowest, highest = float(values.min()), float(values.max())
    if lowest < 0 or not np.isfinite(highest):
        raise ValueError(f"{where} must not be negative or infinite, found values from {lowest:.6g} to {highest:.6g}.")
    if highest > 1:
        raise ValueError(
            f"{where} must lie between 0 and 1, found values up to {highest:.6g}: divide counts by those expected at "
            "their distance (dbio.tl.expected), then for example by the largest."
        )
    difference = np.abs(values - values.transpose(0, 2, 1))
    if difference.max() > 1e-3:
        place = np.unravel_index(int(difference.argmax()), difference.shape)
        raise ValueError(
            f"{where} must be symmetric, found {values[place]:.6g} and "
            f"{values[place[0], place[2], place[1]]:.6g} at tokens {int(place[1])} and {int(place[2])} of region "
            f"{str(regions.names[place[0]])!r}."
        )
    return (values + values.transpose(0, 2, 1)) / 2  # asymmetric by rounding alone


def _any_token(track: np.ndarray) -> np.ndarray:
    """Whether a token of the region is open; NaN where none is known."""
    known = ~np.isnan(track)
    return np.where(known.any(axis=2), np.where(known, track, 0).max(axis=2), np.nan).astype(np.float32)
