from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.results import make_record, prefix_of
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc.engines.contacts_insulation import MapInsulation, insulation_map
from diffbio_sc.tl._contacts_input import Axis, BalancedMap, Breaks, in_bins, read_balanced

if TYPE_CHECKING:
    from anndata import AnnData

WINDOWS = (10, 20)
"""Default windows in bins. ``benchmarks/contacts.py windows`` shows the choice."""
MIN_DISTANCE = 5


def insulation(
    adata: AnnData,
    *,
    windows: Sequence[int] | None = None,
    key: str = "contacts",
    axis: Axis = None,
    weight_key: str = "contact_weight",
    divisive: bool = False,
    ignore_diags: int = 2,
    breaks: Breaks = None,
    min_distance: int | None = None,
    threshold: float | None = None,
    method: Literal["contrast", "cooltools"] = "contrast",
    key_added: str = "insulation",
    copy: bool = False,
) -> AnnData | None:
    """Score how well each position insulates its sides, call boundaries, and list the domains between them.

    For each window the contacts that cross the start of a bin (a diamond of the map) are compared with those among the
    bins before and among the bins after it (two triangles), each over what the decay expects. The log of the ratio,
    averaged over windows in units of its standard deviation, is the boundary score. A boundary is a local maximum of it
    beyond Li's threshold :cite:p:`Li1998`, which separates low from high maxima, beyond what its minima reach, and
    beyond counting noise.

    Parameters
    ----------
    adata
        Object with a contact map that :func:`diffbio_sc.tl.balance` has balanced.
    windows
        Widths in base pairs of the windows to either side; default 10 and 20 bins.
    key, axis
        Key of the counts in ``.obsp`` or ``.varp``; which axis holds the bins, if both could.
    weight_key, divisive
        Column with the balancing weights; whether counts are divided by them.
    ignore_diags
        Number of diagonals left out.
    breaks
        Position in base pairs, by chromosome, at which it is cut; no window reaches across.
    min_distance
        Smallest distance in base pairs of two boundaries; default 5 bins.
    threshold
        Smallest score of a boundary; default from the data.
    method
        ``"cooltools"`` gives the scores of cooltools :cite:p:`Open2C2024`, log2 of the mean balanced contact in the
        diamond over the median one, and its boundary strengths, the prominences of minima, of the last window.
    key_added
        Key of the record in ``.uns``. Fields have the names below for the default key, and ``f"{key_added}_"`` in
        front for others.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields; bins along ``obs``:

    `.obsm["insulation"]` : DataFrame
        Insulation score of each bin, a column for each window (its width in base pairs): log of observed over expected
        contacts that cross the start of the bin, low at boundaries. NaN at edges and gaps.
    `.obs["boundary_score"]` : float64
        Boundary score.
    `.obs["boundary_prob"]` : float64
        Soft call between 0 and 1: above the threshold and above the neighbours.
    `.obs["is_boundary"]` : bool
        Boundaries, at the start of the bin.
    `.uns["insulation"]` : dict
        ``params``, ``version``, ``report``, ``threshold`` and ``tads``, a table of domains: ``chrom``, ``start``,
        ``end``, ``score_start`` and ``score_end`` (of their boundaries, NaN at the end of a chromosome).

    Raises
    ------
    KeyError
        If there is no such map, or it has no weights.
    ValueError
        If values are no counts, or a window is shorter than two bins. Nothing has been written then.

    Warns
    -----
    UserWarning
        If a window is longer than all regions, or the map has fewer than 100 contacts for each bin: nothing is called
        then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.balance(adata)
    >>> dbio.tl.insulation(adata, windows=[100_000, 200_000])
    >>> adata.obsm["insulation"].columns.tolist()
    ['100000', '200000']
    """
    check_options(
        insulation, locals(), windows="(0, inf) base pairs", ignore_diags="[0, inf)", min_distance="(0, inf) base pairs"
    )
    ignore_diags = int(ignore_diags)
    balanced = read_balanced(
        adata,
        key=key,
        axis=axis,
        weight_key=weight_key,
        divisive=divisive,
        ignore_diags=ignore_diags,
        breaks=breaks,
    )
    params = {
        "key": key,
        "weight_key": weight_key,
        "windows": windows,
        "ignore_diags": ignore_diags,
        "min_distance": min_distance,
        "threshold": threshold,
        "method": method,
    }
    widths, distance = insulation_lengths(balanced.resolution, windows, min_distance)
    adata = adata.copy() if copy else adata
    fields = insulation_fields(balanced, widths, distance, params, prefix_of(key_added, "insulation"), adata)
    columns, matrices, record = fields
    balanced.contacts.axis.write(adata, columns=columns, matrices=matrices, uns={key_added: record})
    return adata if copy else None


def insulation_lengths(
    resolution: int, windows: Sequence[int] | None, min_distance: int | None
) -> tuple[list[int], int]:
    """Windows and smallest distance in bins."""
    if windows is None:
        widths = list(WINDOWS)
    else:
        values = [windows] if isinstance(windows, int | np.integer) else list(windows)
        if not values:
            raise ValueError("windows must name at least one width in base pairs, found none.")
        widths = sorted({in_bins("windows", value, resolution, 2) for value in values})
        uneven = [int(value) for value in values if value % resolution]
        if uneven:
            raise ValueError(f"windows must be multiples of the {resolution} bp of a bin, found {uneven}.")
    distance = MIN_DISTANCE if min_distance is None else in_bins("min_distance", min_distance, resolution)
    return widths, distance


def insulation_fields(
    balanced: BalancedMap, widths: list[int], distance: int, params: dict[str, Any], prefix: str, adata: AnnData
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Columns and matrices of the genome axis, and record."""
    started = time.perf_counter()
    contacts = balanced.contacts
    longest = max(decay.last - decay.first for decay in balanced.decays)
    too_long = [width * balanced.resolution for width in widths if width >= longest]
    if too_long:
        warnings.warn(
            f"windows {too_long} are longer than every region of the map: they give no score.",
            UserWarning,
            stacklevel=4,
        )
    shallow = balanced.is_shallow("boundaries")
    result = insulation_map(
        contacts.map,
        balanced.weights,
        balanced.decays,
        windows=widths,
        nearest=params["ignore_diags"],
        distance=distance,
        threshold=params["threshold"],
        call=not shallow,
        method=params["method"],
    )
    names = adata.obs_names if contacts.axis.axis == "obs" else adata.var_names
    scores = pd.DataFrame(
        contacts.to_axis(result.insulation),
        index=names,
        columns=[str(width * balanced.resolution) for width in widths],
    )
    columns = {
        f"{prefix}boundary_score": contacts.to_axis(result.score),
        f"{prefix}boundary_prob": contacts.to_axis(result.probability),
        f"{prefix}is_boundary": contacts.to_axis(result.boundary),
    }
    logger.info(f"{int(result.boundary.sum())} boundaries.")
    params = {
        **params,
        "windows": np.array(widths) * balanced.resolution,
        "min_distance": distance * balanced.resolution,
    }
    report = {"converged": True, "seconds": time.perf_counter() - started}
    record = make_record(params, report, threshold=result.threshold, tads=_domains(result, balanced))
    return columns, {f"{prefix}insulation": scores}, record


def _domains(result: MapInsulation, balanced: BalancedMap) -> pd.DataFrame:
    contact_map = balanced.contacts.map
    first, last = result.domains[:, 0].astype(np.int64), result.domains[:, 1].astype(np.int64)
    return pd.DataFrame(
        {
            "chrom": np.array(contact_map.chrom_names, dtype=object)[contact_map.chrom[first]],
            "start": contact_map.start[first],
            "end": contact_map.end[last - 1],
            "score_start": result.domains[:, 2],
            "score_end": result.domains[:, 3],
        }
    )
