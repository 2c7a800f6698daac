from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc.engines.contacts_loops import MapLoops, loops_map
from diffbio_sc.numerics.genome.loops import LoopShape, default_shape
from diffbio_sc.tl._contacts_input import Axis, BalancedMap, Breaks, in_bins, read_balanced

if TYPE_CHECKING:
    from anndata import AnnData

ENRICHMENT = 1.2
MAX_DISTANCE = 2_000_000
_BACKGROUNDS = ("donut", "lower_left", "horizontal", "vertical")


def loops(
    adata: AnnData,
    *,
    fdr: float = 0.05,
    min_enrichment: float = ENRICHMENT,
    min_distance: int | None = None,
    max_distance: int = MAX_DISTANCE,
    filter_width: float | None = None,
    min_valid: float = 0.5,
    key: str = "contacts",
    axis: Axis = None,
    weight_key: str = "contact_weight",
    divisive: bool = False,
    ignore_diags: int = 2,
    breaks: Breaks = None,
    key_added: str = "loops",
    copy: bool = False,
) -> AnnData | None:
    """Find loops: pairs of bins with more contacts than decay and surroundings explain.

    Four backgrounds about each pair, the donut, its lower left corner and the horizontal and vertical strips of HiCCUPS
    :cite:p:`Rao2014`, say how many contacts the neighbourhood has. A Gaussian filter of the shape of a loop collects
    the evidence, scored against the largest background on the scale where the variance of counts is constant. How much
    counts vary beyond Poisson is estimated from the scores themselves, by distance.

    Parameters
    ----------
    adata
        Object with a contact map that :func:`diffbio_sc.tl.balance` has balanced.
    fdr
        Largest false discovery rate of a loop, among the pairs of about its distance. 1 gives all local maxima of the
        score.
    min_enrichment
        Smallest ratio of the contacts of a loop to those that the largest background expects.
    min_distance, max_distance
        Range in base pairs of the distances of pairs; by default from 4 bins to 2 Mb.
    filter_width
        Standard deviation of the filter in base pairs; default 0.8 to 1.2 bins by resolution.
    min_valid
        Share of usable pairs that the window of a scored pair must have.
    key, axis
        Key of the counts in ``.obsp`` or ``.varp``; which axis holds the bins, if both could.
    weight_key, divisive
        Column with the balancing weights; whether counts are divided by them.
    ignore_diags
        Number of diagonals left out.
    breaks
        Position in base pairs, by chromosome, at which it is cut; pairs across it are not scored.
    key_added
        Key of the result in ``.uns``.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with this field:

    `.uns["loops"]` : dict
        ``params``, ``version``, ``report``, ``dispersion`` (overdispersion by distance: a table ``first_distance``,
        ``dispersion``, ``centre`` and ``spread`` of the scores) and ``table``, the loops, best first, with the columns
        of BEDPE (``chrom1``, ``start1``, ``end1``, ``chrom2``, ``start2``, ``end2``) and

        ``count``
            Raw count of the pair.
        ``observed``, ``expected``
            Count under the filter, and what the largest background expects there.
        ``expected_donut``, ``expected_lower_left``, ``expected_horizontal``, ``expected_vertical``
            What each background expects.
        ``enrichment``
            ``observed / expected``.
        ``zscore``, ``pval``, ``qval``
            Score, one-sided p-value and false discovery rate.

    Raises
    ------
    KeyError
        If there is no such map, or it has no weights.
    ValueError
        If values are no counts, or an argument is out of range. Nothing has been written then.

    Warns
    -----
    UserWarning
        If the map has fewer than 100 contacts for each bin: no loop is called then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.balance(adata)
    >>> dbio.tl.loops(adata)
    >>> bool((adata.uns["loops"]["table"]["qval"] <= 0.05).all())
    True
    """
    check_options(
        loops,
        locals(),
        fdr="(0, 1]",
        min_enrichment="[0, inf)",
        min_distance="(0, inf) base pairs",
        max_distance="(0, inf) base pairs",
        filter_width="(0, inf) base pairs",
        min_valid="[0, 1]",
        ignore_diags="[0, inf)",
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
        "fdr": fdr,
        "min_enrichment": min_enrichment,
        "min_distance": min_distance,
        "max_distance": max_distance,
        "filter_width": filter_width,
        "min_valid": min_valid,
        "ignore_diags": ignore_diags,
    }
    record = loops_record(balanced, params)
    adata = adata.copy() if copy else adata
    write_results(adata, uns={key_added: record})
    return adata if copy else None


def loops_record(balanced: BalancedMap, params: dict[str, Any]) -> dict[str, Any]:
    """Record with the table of loops."""
    started = time.perf_counter()
    resolution = balanced.resolution
    shape = default_shape(resolution)
    if params["filter_width"] is not None:
        shape = LoopShape(shape.inner, shape.outer, params["filter_width"] / resolution)
    lowest = shape.inner + 2
    smallest = (
        lowest
        if params["min_distance"] is None
        else in_bins("min_distance", params["min_distance"], resolution, lowest)
    )
    largest = in_bins("max_distance", params["max_distance"], resolution)
    if largest < smallest:
        warnings.warn(
            f"bins of {resolution} bp are too coarse for loops: between min_distance ({smallest * resolution} bp) and "
            f"max_distance ({params['max_distance']} bp) there are no pairs.",
            UserWarning,
            stacklevel=3,
        )
    shallow = balanced.is_shallow("loops")
    result = loops_map(
        balanced.contacts.map,
        balanced.weights,
        balanced.decays,
        shape=shape,
        smallest=smallest,
        largest=largest,
        enrichment=params["min_enrichment"],
        valid=params["min_valid"],
        nearest=params["ignore_diags"],
    )
    kept = result.q <= params["fdr"]
    if shallow:
        kept[:] = False
    table = _table(result, kept, balanced)
    logger.info(f"{len(table)} loops.")
    params = {
        **params,
        "filter_width": shape.width * resolution,
        "min_distance": smallest * resolution,
        "max_distance": largest * resolution,
    }
    report = {"converged": True, "seconds": time.perf_counter() - started}
    null = result.null
    strata = pd.DataFrame(
        {
            "first_distance": np.zeros(0, np.int64) if null is None else null.edges[:-1] * resolution,
            "dispersion": np.zeros(0) if null is None else null.dispersion,
            "centre": np.zeros(0) if null is None else null.centre,
            "spread": np.zeros(0) if null is None else null.spread,
        }
    )
    return make_record(params, report, table=table, dispersion=strata)


def _table(result: MapLoops, kept: np.ndarray, balanced: BalancedMap) -> pd.DataFrame:
    contact_map = balanced.contacts.map
    first, second = result.first[kept], result.second[kept]
    chrom = np.array(contact_map.chrom_names, dtype=object)[contact_map.chrom[first]]
    level = result.level[kept]
    counts = np.asarray(contact_map.counts[first, second]).ravel() if len(first) else np.zeros(0, np.int64)
    return pd.DataFrame(
        {
            "chrom1": chrom,
            "start1": contact_map.start[first],
            "end1": contact_map.end[first],
            "chrom2": chrom,
            "start2": contact_map.start[second],
            "end2": contact_map.end[second],
            "count": counts.astype(np.int64),
            "observed": result.observed[kept],
            "expected": result.expected[kept],
            **{f"expected_{name}": result.ratios[kept, k] * level for k, name in enumerate(_BACKGROUNDS)},
            "enrichment": result.observed[kept] / result.expected[kept],
            "zscore": result.z[kept],
            "pval": result.p[kept],
            "qval": result.q[kept],
        }
    )
