from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.contacts import read_track
from diffbio_sc._anndata.results import make_record, prefix_of
from diffbio_sc._options import check_options
from diffbio_sc.engines.contacts_compartments import MapCompartments, compartments_map
from diffbio_sc.numerics.genome.compartments import GAMMA
from diffbio_sc.tl._contacts_input import Axis, BalancedMap, Breaks, in_bins, read_balanced

if TYPE_CHECKING:
    from anndata import AnnData

NEAREST = 500_000


def compartments(
    adata: AnnData,
    *,
    phasing_track: str | np.ndarray | pd.DataFrame | None = None,
    key: str = "contacts",
    axis: Axis = None,
    contact: Literal["cis", "trans"] = "cis",
    weight_key: str = "contact_weight",
    divisive: bool = False,
    ignore_diags: int = 2,
    breaks: Breaks = None,
    n_vectors: int = 3,
    min_distance: int = NEAREST,
    gamma: float = GAMMA,
    method: Literal["weighted", "cooltools"] = "weighted",
    key_added: str = "compartments",
    copy: bool = False,
) -> AnnData | None:
    """Find A and B compartments: the leading eigenvectors of observed over expected contacts.

    The matrix of observed over expected contacts minus 1, weighted by the expected counts to the power ``gamma``, is
    never made: its product with a vector costs the contacts and a Fourier transform :cite:p:`Lieberman2009`. An
    eigenvector has no sign of its own. A track that is high in A, such as GC content, gene density or an active mark,
    gives it one, and picks it among the leading vectors, of which the first is sometimes the arm of a chromosome.

    Parameters
    ----------
    adata
        Object with a contact map that :func:`diffbio_sc.tl.balance` has balanced.
    phasing_track
        Track that is high in A: a column of the genome axis, a name along the other axis (its values in ``X``), an
        array with a value for each bin, or a table with ``chrom``, ``start``, ``end`` and a numeric column, of any bin
        size; without a numeric column the number of intervals that start in a bin. NaN means no value.
    key, axis
        Key of the counts in ``.obsp`` or ``.varp``; which axis holds the bins, if both could.
    contact
        Contacts within chromosomes, each on its own, or between chromosomes, all together. The latter need weights of
        ``balance(contact="trans")`` or ``"all"``.
    weight_key, divisive
        Column with the balancing weights; whether counts are divided by them.
    ignore_diags
        Number of diagonals that the decay leaves out.
    breaks
        Position in base pairs, by chromosome, at which it is cut, such as its centromere; each part is worked through
        on its own.
    n_vectors
        Number of eigenvectors.
    min_distance
        Smallest distance in base pairs of the pairs of bins: nearer ones show domains rather than compartments.
    gamma
        Exponent of the weights. 0 is the plain eigenvector, which fails on shallow maps, 1 weighs as counting noise
        does.
    method
        ``"cooltools"`` gives the eigenvectors of cooltools :cite:p:`Open2C2024`, in its scale and order of eigenvalues,
        each turned to follow the track; ``min_distance`` and ``gamma`` have no part in it. For contacts within
        chromosomes.
    key_added
        Key of the record in ``.uns``. Columns have the names below for the default key, and ``f"{key_added}_"`` in
        front for others.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields; bins along ``obs``:

    `.obs["compartment"]` : float64
        From -1 (B) to 1 (A): tanh of the chosen eigenvector, in units of its root mean square, each entry drawn to its
        neighbours as far as counting noise asks; on a deep map it stays as it is. NaN for bins left out. With
        ``method="cooltools"`` the first eigenvector itself.
    `.obs["compartment_label"]` : category
        ``"A"`` or ``"B"`` where a region's sign is confident, otherwise missing.
    `.obsm["X_compartment"]` : float64
        The eigenvectors themselves (bins, n_vectors), the chosen one first; the root mean square of each over a region,
        weighted, is 1.
    `.uns["compartments"]` : dict
        ``params``, ``version``, ``report``, ``phasing_track`` (its name) and ``regions``, a table: ``region``,
        ``eigenvalue_1`` ..., ``chosen`` (rank of the chosen vector), ``correlation`` (Spearman, with the track),
        ``margin`` (of the absolute correlation times the eigenvalue against the next vector) and ``sign_confident``.

    Raises
    ------
    KeyError
        If there is no such map or track, or the map has no weights.
    ValueError
        If values are no counts, or map and track have no chromosome in common. Nothing has been written then.

    Warns
    -----
    UserWarning
        If there is no track, or the sign of some region is not beyond chance: signs are then a convention.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.balance(adata)
    >>> dbio.tl.compartments(adata, phasing_track="gc")
    >>> adata.obs["compartment_label"].cat.categories.tolist()
    ['A', 'B']
    """
    check_options(
        compartments,
        locals(),
        ignore_diags="[0, inf)",
        n_vectors="[1, inf)",
        min_distance="[0, inf) base pairs",
        gamma="[0, 1]",
    )
    ignore_diags, n_vectors = int(ignore_diags), int(n_vectors)
    if method == "cooltools" and contact == "trans":
        raise ValueError("method='cooltools' is for contact='cis': contacts between chromosomes have 'weighted' alone.")
    balanced = read_balanced(
        adata,
        key=key,
        axis=axis,
        weight_key=weight_key,
        divisive=divisive,
        ignore_diags=ignore_diags,
        breaks=breaks,
        allow_fractional=True,
    )
    track, name = (None, None) if phasing_track is None else read_track(adata, balanced.contacts, phasing_track)
    adata = adata.copy() if copy else adata
    params = {
        "key": key,
        "contact": contact,
        "weight_key": weight_key,
        "n_vectors": n_vectors,
        "min_distance": min_distance,
        "gamma": gamma,
        "method": method,
        "ignore_diags": ignore_diags,
    }
    columns, matrices, record = compartments_fields(
        balanced, track, name, params, prefix_of(key_added, "compartments"), adata, contact
    )
    balanced.contacts.axis.write(adata, columns=columns, matrices=matrices, uns={key_added: record})
    return adata if copy else None


def compartments_fields(
    balanced: BalancedMap,
    track: np.ndarray | None,
    track_name: str | None,
    params: dict[str, Any],
    prefix: str,
    adata: AnnData,
    contact: Literal["cis", "trans"] = "cis",
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Columns and matrices of the genome axis, and record."""
    started = time.perf_counter()
    contacts = balanced.contacts
    if contact == "trans" and len(contacts.map.chromosomes()) < 2:
        raise ValueError("contact='trans' needs at least two chromosomes, found one.")
    nearest = in_bins("min_distance", params["min_distance"], balanced.resolution, 0)
    result = compartments_map(
        contacts.map,
        balanced.weights,
        balanced.decays,
        track=track,
        contact=contact,
        nearest=nearest,
        count=params["n_vectors"],
        gamma=params["gamma"],
        method=params["method"],
        ignore_diags=params["ignore_diags"],
    )
    _warn(result, track_name)
    confident = np.zeros(contacts.map.n_bins, bool)
    spans = [(0, contacts.map.n_bins)] if contact == "trans" else [(d.first, d.last) for d in balanced.decays]
    for (first, last), how in zip(spans, result.phasing, strict=True):
        confident[first:last] = how.confident
    vector = np.tanh(result.shrunk) if params["method"] == "weighted" else result.shrunk
    code = np.where(np.isfinite(vector) & confident, (vector <= 0).astype(np.int8), np.int8(-1))
    columns = {
        f"{prefix}compartment": contacts.to_axis(vector),
        f"{prefix}compartment_label": pd.Categorical.from_codes(contacts.to_axis(code), ["A", "B"]),
    }
    matrices = {f"X_{prefix}compartment": contacts.to_axis(result.vectors)}
    phasing = result.phasing
    table = pd.DataFrame(
        {
            "region": [how.name for how in phasing],
            **{
                f"eigenvalue_{k + 1}": np.array([how.values[k] for how in phasing], np.float64)
                for k in range(params["n_vectors"])
            },
            "chosen": np.array([how.chosen for how in phasing], np.int64),
            "correlation": np.array([how.correlation for how in phasing], np.float64),
            "margin": np.array([how.margin for how in phasing], np.float64),
            "sign_confident": np.array([how.confident for how in phasing], bool),
        }
    )
    report = {"converged": True, "seconds": time.perf_counter() - started}
    return columns, matrices, make_record(params, report, phasing_track=track_name, regions=table)


def _warn(result: MapCompartments, track_name: str | None) -> None:
    found = [how for how in result.phasing if np.isfinite(how.values).any()]
    if len(found) < len(result.phasing):
        names = [how.name for how in result.phasing if how not in found]
        warnings.warn(
            f"{len(names)} regions have too few usable bins for compartments: {names[:5]}.", UserWarning, stacklevel=4
        )
    if not found:
        return
    if track_name is None:
        warnings.warn(
            "without phasing_track the sign of compartments is arbitrary, for each region: A and B are not told "
            "apart and compartment_label stays empty. Pass GC content, gene density or an active mark.",
            UserWarning,
            stacklevel=4,
        )
        return
    unsure = [how.name for how in found if not how.confident]
    if unsure:
        warnings.warn(
            f"{len(unsure)} regions do not follow the track {track_name!r} beyond chance, their sign is not confident: "
            f"{unsure[:5]}.",
            UserWarning,
            stacklevel=4,
        )
