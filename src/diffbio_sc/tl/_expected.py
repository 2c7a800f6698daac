from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.contacts import read_breaks, read_contacts, read_weights
from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._options import check_options
from diffbio_sc.engines.contacts_expected import RegionDecay, expected_map
from diffbio_sc.tl._contacts_input import Axis, Breaks

if TYPE_CHECKING:
    from anndata import AnnData


def expected(
    adata: AnnData,
    *,
    key: str = "contacts",
    axis: Axis = None,
    weight_key: str = "contact_weight",
    divisive: bool = False,
    ignore_diags: int = 2,
    breaks: Breaks = None,
    method: Literal["regression", "cooltools"] = "regression",
    monotone: bool = False,
    key_added: str = "expected",
    copy: bool = False,
) -> AnnData | None:
    """Estimate how many contacts are expected at each distance.

    Counts at distance d are Poisson of mean P(d) / (w_i w_j). log P is piecewise linear in log distance, about ten
    knots a decade, with a penalty on changes of slope that generalised cross-validation chooses; P is above 0 also
    where no contact was seen.

    Parameters
    ----------
    adata
        Object with a contact map that :func:`diffbio_sc.tl.balance` has balanced.
    key, axis
        Key of the counts in ``.obsp`` or ``.varp``; which axis holds the bins, if both could.
    weight_key
        Column of the genome axis with the balancing weights.
    divisive
        Whether counts are divided by the weights, as in .hic files, rather than multiplied.
    ignore_diags
        Number of diagonals left out.
    breaks
        Position in base pairs, by chromosome, at which it is cut, such as its centromere; each part has a decay of its
        own.
    method
        ``"cooltools"`` gives the Gaussian smoother in log distance of cooltools :cite:p:`Open2C2024`, whose numbers it
        equals.
    monotone
        Whether the expected contacts may nowhere rise with distance, for ``method="regression"``. Far apart, where
        compartments and few contacts make it wavy, the decay is then flat.
    key_added
        Key of the result in ``.uns``.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with this field:

    `.uns["expected"]` : dict
        ``params``, ``version``, ``report`` and ``table``, a table with a row for each region and distance: ``region``,
        ``dist`` (bins), ``dist_bp``, ``n_valid`` (pairs of usable bins), ``count.sum``, ``count.avg`` (over these
        pairs), ``balanced.avg``, ``smoothed`` (P) and ``slope`` (d log P / d log distance). Distances that are left
        out have NaN.

    Raises
    ------
    KeyError
        If there is no such map, or it has no weights.
    ValueError
        If values are no counts. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.balance(adata)
    >>> dbio.tl.expected(adata)
    >>> table = adata.uns["expected"]["table"].query("region == 'chr1'").set_index("dist_bp")
    >>> bool(table.loc[100_000, "smoothed"] > table.loc[1_000_000, "smoothed"])
    True
    """
    check_options(expected, locals(), ignore_diags="[0, inf)")
    ignore_diags = int(ignore_diags)
    started = time.perf_counter()
    if monotone and method != "regression":
        raise ValueError("monotone=True is for method='regression'; the smoother of cooltools follows the data.")
    contacts = read_contacts(adata, key, axis=axis)
    weights = read_weights(adata, contacts, weight_key, divisive)
    cuts = read_breaks(contacts, breaks)
    adata = adata.copy() if copy else adata
    decays = expected_map(
        contacts.map, weights, ignore_diags=ignore_diags, breaks=cuts, method=method, monotone=monotone
    )
    params = {
        "key": key,
        "weight_key": weight_key,
        "ignore_diags": ignore_diags,
        "method": method,
        "monotone": monotone,
    }
    record = expected_record(decays, contacts.map.resolution, ignore_diags, params, time.perf_counter() - started)
    write_results(adata, uns={key_added: record})
    return adata if copy else None


def expected_record(
    decays: list[RegionDecay], resolution: int, ignore_diags: int, params: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Record with the table of all regions."""
    parts = []
    for decay in decays:
        sums = decay.sums
        size = len(sums.pairs)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean, balanced = sums.count / sums.pairs, sums.balanced / sums.pairs
        total = sums.count.copy()
        for column in (mean, balanced, total):
            column[:ignore_diags] = np.nan
        parts.append(
            {
                "region": np.full(size, decay.name, dtype=object),
                "dist": np.arange(size),
                "dist_bp": np.arange(size) * resolution,
                "n_valid": sums.pairs.astype(np.int64),
                "count.sum": total,
                "count.avg": mean,
                "balanced.avg": balanced,
                "smoothed": decay.value,
                "slope": decay.slope,
            }
        )
    table = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    table["region"] = pd.Categorical(table["region"], [decay.name for decay in decays])
    report = {"converged": True, "seconds": seconds}
    return make_record(
        params, report, table=table, pooled_regions=[decay.name for decay in decays if decay.pooled] or None
    )
