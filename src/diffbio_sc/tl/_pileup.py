from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffbio_sc._anndata.contacts import Contacts
from diffbio_sc._anndata.features import bins_at, read_pairs
from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._anndata.tables import in_memory, read_column
from diffbio_sc._options import check_options
from diffbio_sc.numerics.genome.contact_averages import window_means
from diffbio_sc.tl._contacts_input import Axis, Breaks, in_bins, read_balanced

if TYPE_CHECKING:
    from anndata import AnnData


def pileup(
    adata: AnnData,
    features: pd.DataFrame | str = "loops",
    *,
    flank: int = 100_000,
    key: str = "contacts",
    axis: Axis = None,
    weight_key: str = "contact_weight",
    divisive: bool = False,
    ignore_diags: int = 2,
    breaks: Breaks = None,
    key_added: str = "pileup",
    copy: bool = False,
) -> AnnData | None:
    """Average observed over expected contacts in windows about loops or boundaries.

    Parameters
    ----------
    adata
        Object with a balanced contact map (:func:`diffbio_sc.tl.balance`).
    features
        What windows lie about: a table of pairs of regions with BEDPE columns (``chrom1``, ``start1``, ``end1``,
        ``chrom2``, ``start2``, ``end2``), or of regions (``chrom``, ``start`` and perhaps ``end``), whose windows lie
        on the diagonal at the start; the key in ``.uns`` of loops; or a column of the bins that is true at boundaries
        (``"is_boundary"``).
    flank
        Length of the window on each side in base pairs.
    key, axis
        Key of the counts in ``.obsp`` or ``.varp``; which axis holds the bins, if both could.
    weight_key, divisive
        Column with the balancing weights, and whether counts are divided by them.
    ignore_diags
        Number of diagonals left out.
    breaks
        Positions in base pairs, by chromosome, at which it is cut.
    key_added
        Key of the result in ``.uns``.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with this field:

    `.uns["pileup"]` : dict
        ``mean``, the mean of observed over expected at each offset (rows: first region, from upstream to downstream);
        ``number``, how many windows have a value there; ``params`` with ``n_features`` and ``diagonal``; ``version``;
        ``report`` with ``enrichment``: of pairs the middle 3 x 3 over the four corners (a ninth of the window each), of
        boundaries the contacts within either side over those across.

    Raises
    ------
    KeyError
        If there are no such map, weights or features.
    ValueError
        If no feature lies in the map. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.contacts(adata, phasing_track="gc")
    >>> dbio.tl.pileup(adata, "loops")
    >>> dbio.tl.pileup(adata, "is_boundary", flank=300_000, key_added="boundary_pileup")
    >>> adata.uns["boundary_pileup"]["mean"].shape
    (61, 61)
    """
    check_options(pileup, locals(), flank="(0, inf) base pairs", ignore_diags="[0, inf)")
    ignore_diags = int(ignore_diags)
    started = time.perf_counter()
    balanced = read_balanced(
        adata, key=key, axis=axis, weight_key=weight_key, divisive=divisive, ignore_diags=ignore_diags, breaks=breaks
    )
    contacts = balanced.contacts
    reach = in_bins("flank", flank, balanced.resolution)
    row, column, diagonal = _points(adata, features, contacts)
    side = 2 * reach + 1
    sums, number = np.zeros((side, side)), np.zeros((side, side))
    n_features = 0
    for decay in balanced.decays:
        region = slice(decay.first, decay.last)
        mine = (row >= decay.first) & (column < decay.last)
        n_features += int(mine.sum())
        if mine.any():
            part = window_means(
                contacts.map.counts[region, region],
                balanced.weights[region],
                decay.value,
                row[mine] - decay.first,
                column[mine] - decay.first,
                reach,
                ignore_diags,
            )
            sums, number = sums + part[0], number + part[1]
    if not n_features:
        raise ValueError("features lie in no region of the map: there is nothing to pile up.")
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(number > 0, sums / number, np.nan)
    params = {
        "key": key,
        "features": features if isinstance(features, str) else "table",
        "flank": reach * balanced.resolution,
        "resolution": balanced.resolution,
        "n_features": n_features,
        "diagonal": diagonal,
    }
    report = {
        "converged": True,
        "seconds": time.perf_counter() - started,
        "enrichment": _boundary_contrast(mean) if diagonal else _loop_enrichment(mean),
    }
    adata = adata.copy() if copy else adata
    write_results(adata, uns={key_added: make_record(params, report, mean=mean, number=number)})
    return adata if copy else None


def _points(adata: AnnData, features: Any, contacts: Contacts) -> tuple[np.ndarray, np.ndarray, bool]:
    """Bins of both regions of each feature, and whether these are on the diagonal."""
    if isinstance(features, str):
        table = getattr(adata, contacts.axis.axis)
        record = in_memory(adata.uns.get(features))
        column = read_column(table, features) if features in table else None
        if column is not None and column.dtype.kind == "b":
            place = np.flatnonzero(contacts.to_map(column.to_numpy(bool), False))
            if not len(place):
                raise ValueError(f"adata.{contacts.axis.axis}[{features!r}] is true for no bin.")
            return place, place, True
        if not isinstance(record, dict) or "table" not in record:
            raise KeyError(
                f"features {features!r} is neither a key of adata.uns with a table of loops ({list(adata.uns)}) nor a "
                f"column of adata.{contacts.axis.axis} with true and false."
            )
        features = record["table"]
    if not isinstance(features, pd.DataFrame):
        raise TypeError(f"features must be a table or a key, found {type(features).__name__}.")
    if not len(features):
        raise ValueError("features is empty: there is nothing to pile up.")
    if "chrom1" in features:
        row, column, kept = read_pairs(features, contacts, "features")
        if not kept.all():
            _warn_outside(kept)
        return row[kept], column[kept], False
    missing = [name for name in ("chrom", "start") if name not in features]
    if missing:
        raise KeyError(f"features lack the columns {missing}; columns: {list(map(str, features.columns))}.")
    place = bins_at(contacts, features["chrom"], features["start"])
    kept = place >= 0
    if not kept.any():
        raise ValueError(
            f"none of the {len(features)} features lies in the map; chromosomes: {contacts.axis.chromosomes}."
        )
    if not kept.all():
        _warn_outside(kept)
    return place[kept], place[kept], True


def _warn_outside(kept: np.ndarray) -> None:
    warnings.warn(f"{int((~kept).sum())} of {len(kept)} features lie outside the map.", UserWarning, stacklevel=4)


def _loop_enrichment(mean: np.ndarray) -> float:
    middle = len(mean) // 2
    corner = max(len(mean) // 3, 1)
    near, far = slice(0, corner), slice(len(mean) - corner, None)
    corners = np.stack([mean[near, near], mean[near, far], mean[far, near], mean[far, far]])
    width = 1 if len(mean) >= 3 else 0
    centre = mean[middle - width : middle + width + 1, middle - width : middle + width + 1]
    return float(np.nanmean(centre) / np.nanmean(corners)) if np.isfinite(corners).any() else float("nan")


def _boundary_contrast(mean: np.ndarray) -> float:
    middle = len(mean) // 2
    # The bin at the boundary is the first of the downstream side.
    before, after = slice(0, middle), slice(middle, None)
    if not np.isfinite(mean[before, after]).any():
        return float("nan")
    within = np.concatenate([mean[before, before].ravel(), mean[after, after].ravel()])
    return float(np.nanmean(within) / np.nanmean(mean[before, after]))
