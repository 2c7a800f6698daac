from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc._anndata.contacts import read_contacts
from diffbio_sc._anndata.results import make_record, prefix_of
from diffbio_sc._options import check_options
from diffbio_sc.tl._contacts_input import Axis

if TYPE_CHECKING:
    from anndata import AnnData

_ENOUGH = 1000  # contacts of a bin from which Rao et al. (2014) call a map resolved, if 80 % of the bins have them
_FAR = 20_000


def coverage_stats(
    adata: AnnData,
    *,
    key: str = "contacts",
    axis: Axis = None,
    ignore_diags: int = 2,
    key_added: str = "coverage_stats",
    copy: bool = False,
) -> AnnData | None:
    """Count the contacts of each bin, and describe the depth and quality of a map.

    Parameters
    ----------
    adata
        Object with a contact map.
    key, axis
        Key of the counts in ``.obsp`` or ``.varp``; which axis holds the bins, if both could.
    ignore_diags
        Number of diagonals left out of the coverage of bins; the summary is of all contacts.
    key_added
        Key of the summary in ``.uns``. Columns have the names below for the default key, and ``f"{key_added}_"`` in
        front for others.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields; bins along ``obs``:

    `.obs["coverage_cis"]`, `.obs["coverage_trans"]` : int64
        Contacts of each bin with others of its chromosome, and of other chromosomes.
    `.uns["coverage_stats"]` : dict
        ``params``, ``version``, ``report`` and ``summary``: ``n_contacts``, ``contacts_per_bin`` (of bins that have
        any), ``trans_share`` (of all contacts), ``far_share`` (of those within chromosomes, at 20 kb or more),
        ``diagonal_share`` (of those within chromosomes, on the diagonals left out), ``empty_share`` (bins without
        contacts), ``resolved_share`` (bins with at least 1,000 contacts; a map is said to be resolved where it is 0.8
        :cite:p:`Rao2014`).

    Raises
    ------
    KeyError
        If there is no such map.
    ValueError
        If values are no counts.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(200, contacts_per_bin=500)
    >>> dbio.tl.coverage_stats(adata)
    >>> round(adata.uns["coverage_stats"]["summary"]["trans_share"], 2)
    0.0
    """
    check_options(coverage_stats, locals(), ignore_diags="[0, inf)")
    ignore_diags = int(ignore_diags)
    started = time.perf_counter()
    contacts = read_contacts(adata, key, axis=axis)
    found = contacts.map
    row = np.repeat(np.arange(found.n_bins), np.diff(found.counts.indptr))
    column, value = found.counts.indices, found.counts.data.astype(np.int64)
    cis = found.chrom[row] == found.chrom[column]
    distance = column - row
    counted = cis & (distance >= ignore_diags)
    within = _per_bin(row[counted], column[counted], value[counted], found.n_bins)
    between = _per_bin(row[~cis], column[~cis], value[~cis], found.n_bins)
    total, cis_total = int(value.sum()), int(value[cis].sum())
    has_any = (within + between)[contacts.place] > 0

    def share(part: float, whole: float) -> float:
        return float(part / whole) if whole else float("nan")

    summary = {
        "n_contacts": total,
        "contacts_per_bin": share(total, int(has_any.sum())),
        "trans_share": share(total - cis_total, total),
        "far_share": share(value[cis & (distance * found.resolution >= _FAR)].sum(), cis_total),
        "diagonal_share": share(value[cis & (distance < ignore_diags)].sum(), cis_total),
        "empty_share": 1.0 - share(int(has_any.sum()), len(has_any)),
        "resolved_share": share(int(((within + between)[contacts.place] >= _ENOUGH).sum()), len(has_any)),
    }
    prefix = prefix_of(key_added, "coverage_stats")
    adata = adata.copy() if copy else adata
    report = {"converged": True, "seconds": time.perf_counter() - started}
    contacts.axis.write(
        adata,
        columns={
            f"{prefix}coverage_cis": contacts.to_axis(within),
            f"{prefix}coverage_trans": contacts.to_axis(between),
        },
        uns={key_added: make_record({"key": key, "ignore_diags": ignore_diags}, report, summary=summary)},
    )
    return adata if copy else None


def _per_bin(row: np.ndarray, column: np.ndarray, value: np.ndarray, size: int) -> np.ndarray:
    """Contacts of each bin; one of a bin with itself counts once."""
    total = np.bincount(row, value, size) + np.bincount(column, np.where(row == column, 0, value), size)
    return total.astype(np.int64)
