from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffbio_sc._anndata.contacts import Contacts, read_contacts
from diffbio_sc._anndata.results import make_record, prefix_of
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc.engines.contacts_balance import MapBalance, balance_map
from diffbio_sc.tl._contacts_input import Axis

if TYPE_CHECKING:
    from anndata import AnnData


def balance(
    adata: AnnData,
    *,
    key: str = "contacts",
    axis: Axis = None,
    contact: Literal["cis", "trans", "all"] = "cis",
    ignore_diags: int = 2,
    min_nnz: int = 10,
    min_count: float = 0,
    mad_max: float = 5.0,
    tolerance: float = 1e-6,
    key_added: str = "balance",
    copy: bool = False,
) -> AnnData | None:
    """Balance a contact map: find weights that give every bin the same number of contacts.

    Weights x solve x_i sum_j A_ij x_j = 1 by Newton steps on a convex function :cite:p:`Knight2013`, which reach a
    row-sum error of 1e-6 in some 20 products with the map. Bins are filtered, and weights scaled, as cooler does
    :cite:p:`Abdennur2020`, so that either package can use the other's.

    Parameters
    ----------
    adata
        Object with bins along the axis whose table has ``chrom``, ``start`` and ``end``, and raw contact counts.
    key
        Key of the counts in ``.obsp`` or ``.varp``; symmetric, or one triangle.
    axis
        Which axis holds the bins, if both could.
    contact
        Balance the contacts within each chromosome (``"cis"``), between chromosomes (``"trans"``), or all together.
    ignore_diags
        Number of diagonals left out, the main one first: contacts of a bin with itself are mostly no contacts.
    min_nnz, min_count
        Fewest partners and contacts of a bin; others are left out.
    mad_max
        Bins whose log sum lies this many median absolute deviations below the median are left out; 0 keeps them.
    tolerance
        Largest deviation of a row sum from 1.
    key_added
        Key of the record in ``.uns``. Columns have the names below for the default key, and ``f"{key_added}_"`` in
        front for others.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields; bins along ``obs``:

    `.obs["contact_weight"]` : float64
        Weight of each bin: a count times the weights of both of its bins is balanced. NaN for bins left out.
    `.obs["contact_bad_bin"]` : bool
        Bins left out.
    `.uns["balance"]` : dict
        ``params``, ``version``, ``report``; ``regions`` balanced on their own with ``error`` (largest deviation of a
        row sum from 1), ``products`` (with the map) and ``converged`` of each; ``n_bad_bins``; ``n_unbalanced``, bins
        that no weights could balance.

    Raises
    ------
    KeyError
        If there is no such map, or no axis has ``chrom``, ``start`` and ``end``.
    ValueError
        If values are no counts, or bins are not of one width. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.balance(adata)
    >>> adata.uns["balance"]["report"]["converged"]
    True
    """
    check_options(
        balance,
        locals(),
        ignore_diags="[0, inf)",
        min_nnz="[0, inf)",
        min_count="[0, inf)",
        mad_max="[0, inf]",
        tolerance="(0, 1)",
    )
    ignore_diags, min_nnz = int(ignore_diags), int(min_nnz)
    contacts = read_contacts(adata, key, axis=axis)
    options = {
        "contact": contact,
        "ignore_diags": ignore_diags,
        "min_nnz": min_nnz,
        "min_count": min_count,
        "mad_max": mad_max,
        "tolerance": tolerance,
    }
    adata = adata.copy() if copy else adata
    _, columns, record = balance_fields(contacts, {"key": key, **options}, prefix_of(key_added, "balance"), options)
    contacts.axis.write(adata, columns=columns, uns={key_added: record})
    return adata if copy else None


def balance_fields(
    contacts: Contacts, params: dict[str, Any], prefix: str, options: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    """Weights in the order of the map, columns of the genome axis, and record."""
    started = time.perf_counter()
    result = balance_map(contacts.map, **options)
    _warn(result, contacts)
    bad = ~np.isfinite(result.weights)
    bad_of_object = contacts.to_axis(bad)
    columns = {
        f"{prefix}contact_weight": contacts.to_axis(result.weights),
        f"{prefix}contact_bad_bin": bad_of_object,
    }
    logger.info(f"Balanced {int((~bad_of_object).sum())} of {len(bad_of_object)} bins.")
    report = {
        "converged": bool(result.converged.all()),
        "steps": int(result.products.max(initial=0)),
        "seconds": time.perf_counter() - started,
    }
    record = make_record(
        params,
        report,
        regions=result.regions,
        error=result.error,
        products=result.products,
        converged=result.converged,
        n_bad_bins=int(bad_of_object.sum()),
        n_unbalanced=len(result.dropped),
    )
    return result.weights, columns, record


def _warn(result: MapBalance, contacts: Contacts) -> None:
    weights = result.weights
    if not np.isfinite(weights).any():
        warnings.warn(
            "no bin has enough contacts to be balanced: all weights are NaN. Lower min_nnz, or use coarser bins.",
            UserWarning,
            stacklevel=4,
        )
        return
    empty = [name for name in contacts.map.chromosomes() if not np.isfinite(weights[contacts.map.span(name)]).any()]
    if empty:
        warnings.warn(
            f"{len(empty)} chromosomes have no bin with enough contacts and are left out: {empty[:5]}.",
            UserWarning,
            stacklevel=4,
        )
    if len(result.dropped):
        at = result.dropped[:5]
        names = [f"{contacts.map.chrom_names[contacts.map.chrom[k]]}:{contacts.map.start[k]}" for k in at]
        warnings.warn(
            f"{len(result.dropped)} bins cannot be balanced, tied to too few partners, and are left out: {names}.",
            UserWarning,
            stacklevel=4,
        )
    late = [
        f"{name} (row-sum error {error:.2g})"
        for name, error, good in zip(result.regions, result.error, result.converged, strict=True)
        if not good and name not in empty
    ]
    if late:
        warnings.warn(f"balancing did not reach the tolerance: {late[:5]}.", UserWarning, stacklevel=4)
