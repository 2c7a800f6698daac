from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffbio_sc._anndata.contacts import read_breaks, read_contacts, read_track, read_weights
from diffbio_sc._anndata.results import make_record
from diffbio_sc._options import check_options
from diffbio_sc.numerics.genome.compartments import GAMMA
from diffbio_sc.tl._balance import balance_fields
from diffbio_sc.tl._compartments import NEAREST, compartments_fields
from diffbio_sc.tl._contacts_input import Axis, Breaks, with_decays
from diffbio_sc.tl._expected import expected_record
from diffbio_sc.tl._insulation import insulation_fields, insulation_lengths
from diffbio_sc.tl._loops import ENRICHMENT, MAX_DISTANCE, loops_record

if TYPE_CHECKING:
    from anndata import AnnData


def contacts(
    adata: AnnData,
    *,
    phasing_track: str | np.ndarray | pd.DataFrame | None = None,
    key: str = "contacts",
    axis: Axis = None,
    weight_key: str | None = None,
    divisive: bool = False,
    ignore_diags: int = 2,
    breaks: Breaks = None,
    windows: Sequence[int] | None = None,
    fdr: float = 0.05,
    max_distance: int = MAX_DISTANCE,
    copy: bool = False,
) -> AnnData | None:
    """Balance a contact map and find its decay, compartments, boundaries, domains and loops.

    Runs :func:`~diffbio_sc.tl.balance`, :func:`~diffbio_sc.tl.expected`, :func:`~diffbio_sc.tl.compartments`,
    :func:`~diffbio_sc.tl.insulation` and :func:`~diffbio_sc.tl.loops` with their defaults, reading the map once. For
    other settings call them one by one. :class:`~diffbio_sc.operators.multiomics.HiCContactAnalysis` is the
    differentiable twin.

    Parameters
    ----------
    adata
        Object with bins along the axis whose table has ``chrom``, ``start`` and ``end``, and raw contact counts.
    phasing_track
        Track that is high in A compartments, one value per bin; see :func:`~diffbio_sc.tl.compartments`.
    key, axis
        Key of the counts in ``.obsp`` or ``.varp``; which axis holds the bins, if both could.
    weight_key, divisive
        Column of the genome axis with balancing weights to use in place of balancing, as of a file; whether counts are
        divided by them.
    ignore_diags
        Number of diagonals left out.
    breaks
        Position in base pairs, by chromosome, at which it is cut, such as its centromere.
    windows
        Widths in base pairs of the windows of insulation; default 10 and 20 bins.
    fdr
        Largest false discovery rate of a loop.
    max_distance
        Largest distance in base pairs of a loop's anchors.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with the fields of the five functions, and

    `.uns["contacts"]` : dict
        ``params``, ``version``, ``report``; ``depth`` (contacts within chromosomes for each usable bin),
        ``n_boundaries``, ``n_loops``.

    Raises
    ------
    KeyError
        If there is no such map, or no axis has ``chrom``, ``start`` and ``end``.
    ValueError
        If values are no counts, or an argument is out of range. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.contacts(adata, phasing_track="gc")
    >>> len(adata.uns["loops"]["table"]) > 0, bool(adata.obs["is_boundary"].any())
    (True, True)
    """
    check_options(
        contacts,
        locals(),
        ignore_diags="[0, inf)",
        windows="(0, inf) base pairs",
        fdr="(0, 1]",
        max_distance="(0, inf) base pairs",
    )
    ignore_diags = int(ignore_diags)
    started = time.perf_counter()
    found = read_contacts(adata, key, axis=axis)
    cuts = read_breaks(found, breaks)
    track, track_name = (None, None) if phasing_track is None else read_track(adata, found, phasing_track)
    widths, distance = insulation_lengths(found.map.resolution, windows, None)
    columns: dict[str, Any] = {}
    matrices: dict[str, Any] = {}
    uns: dict[str, Any] = {}
    if weight_key is None:
        options = {
            "contact": "cis",
            "ignore_diags": ignore_diags,
            "min_nnz": 10,
            "min_count": 0,
            "mad_max": 5.0,
            "tolerance": 1e-6,
        }
        weights, columns, uns["balance"] = balance_fields(found, {"key": key, **options}, "", options)
    else:
        weights = read_weights(adata, found, weight_key, divisive)
    used_key = weight_key or "contact_weight"
    balanced = with_decays(found, weights, cuts, ignore_diags)
    common = {"key": key, "weight_key": used_key, "ignore_diags": ignore_diags}
    uns["expected"] = expected_record(
        balanced.decays,
        balanced.resolution,
        ignore_diags,
        {**common, "method": "regression", "monotone": False},
        time.perf_counter() - started,
    )
    parts = [
        compartments_fields(
            balanced,
            track,
            track_name,
            {**common, "contact": "cis", "n_vectors": 3, "min_distance": NEAREST, "gamma": GAMMA, "method": "weighted"},
            "",
            adata,
        ),
        insulation_fields(
            balanced,
            widths,
            distance,
            {**common, "windows": windows, "min_distance": None, "threshold": None, "method": "contrast"},
            "",
            adata,
        ),
    ]
    for name, (new_columns, new_matrices, record) in zip(("compartments", "insulation"), parts, strict=True):
        columns |= new_columns
        matrices |= new_matrices
        uns[name] = record
    uns["loops"] = loops_record(
        balanced,
        {
            **common,
            "fdr": fdr,
            "min_enrichment": ENRICHMENT,
            "min_distance": None,
            "max_distance": max_distance,
            "filter_width": None,
            "min_valid": 0.5,
        },
    )
    uns["contacts"] = make_record(
        {**common, "windows": windows, "fdr": fdr, "max_distance": max_distance, "phasing_track": track_name},
        {"converged": True, "seconds": time.perf_counter() - started},
        depth=balanced.depth,
        n_boundaries=int(columns["is_boundary"].sum()),
        n_loops=len(uns["loops"]["table"]),
    )
    adata = adata.copy() if copy else adata
    found.axis.write(adata, columns=columns, matrices=matrices, uns=uns)
    return adata if copy else None
