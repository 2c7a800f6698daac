from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffbio_sc._anndata import require_anndata
from diffbio_sc._anndata.contacts import Contacts, read_contacts
from diffbio_sc._anndata.features import PAIR_COLUMNS, read_pairs
from diffbio_sc._anndata.results import make_record, prefix_of
from diffbio_sc._anndata.tables import in_memory, numbers_or_nan
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc.engines.contact_differences import (
    FEATURES,
    Comparison,
    Settings,
    compare_decay,
    compare_maps,
    good_bins,
)
from diffbio_sc.tl._contacts_input import Axis, in_bins

if TYPE_CHECKING:
    from anndata import AnnData

_LN2 = float(np.log(2.0))


def differential_contacts(
    adata: AnnData,
    *,
    groups: Mapping[str, Sequence[str]],
    features: Sequence[str] = FEATURES,
    loops: pd.DataFrame | str = "loops",
    compartment_key: str = "compartment",
    axis: Axis = None,
    loop_reach: int = 1,
    window: int | None = None,
    compartment_distance: int = 500_000,
    interaction_size: int | None = None,
    max_distance: int = 2_000_000,
    min_count: float = 5.0,
    dispersion: float | None = None,
    rng: int | np.random.Generator = 0,
    key_added: str = "differential_contacts",
    copy: bool = False,
) -> AnnData | None:
    """Find loops, boundaries, compartments and interactions that differ between two groups of contact maps.

    Replicates are compared as counts. The pooled map of all replicates is split into what each would hold if they
    differed in depth, decay and visibility of bins alone; a feature is a sum of contacts over pixels (a square about a
    loop, the windows across and beside a boundary, the contacts of a bin with compartment A and with B, a block of
    interactions), tested against that expectation. Counts are negative binomial, log ratios of two windows normal. The
    dispersion between replicates follows a trend over distance and count, and each feature's own variance is shrunk
    toward it, as in quasi-likelihood tests of RNA-seq :cite:p:`Lund2012,Smyth2004`. Then the variance is scaled so that
    replicates against replicates, half of each group against the other half, give uniform p-values.

    Parameters
    ----------
    adata
        Object with bins along the axis whose table has ``chrom``, ``start`` and ``end``, and the raw contact counts of
        each replicate in ``.obsp`` (or ``.varp``). :func:`diffbio_sc.pp.combine_contacts` puts maps together.
    groups
        Keys of the maps of two groups, by name: ``{"control": ["contacts_control_1", ...], "treated": [...]}``. Changes
        are those of the second against the first.
    features
        Which to test, of ``"loops"``, ``"boundaries"``, ``"compartments"`` and ``"interactions"``.
    loops
        Loops to test: a table with the BEDPE columns (``chrom1``, ``start1``, ``end1``, ``chrom2``, ``start2``,
        ``end2``), or the key in ``.uns`` of :func:`diffbio_sc.tl.loops`. Call them on the pooled map: loops called in
        one group alone are chosen by the noise that is tested.
    compartment_key
        Column of the bins with the compartments of the pooled map, positive for A
        (:func:`diffbio_sc.tl.compartments`).
    axis
        Which axis holds the bins, if both could.
    loop_reach
        Bins on each side of a loop's centre whose contacts count as the loop's.
    window
        Bins on each side of a boundary in base pairs; default 10 bins.
    compartment_distance
        Nearer contacts, in base pairs, are left out for compartments.
    interaction_size
        Length in base pairs of the two regions of an interaction; default 10 bins.
    max_distance
        Longest distance of interactions in base pairs.
    min_count
        Features with a smaller mean count in the replicates are not tested: they have NaN as p-value.
    dispersion
        Squared coefficient of variation between replicates, if known from other data; default estimated. Without
        replicates this is the way to narrower tests.
    rng
        Seed or generator; it chooses the squares that the variance of loops is estimated from.
    key_added
        Key of the result in ``.uns``. Columns have the names below for the default key, and ``f"{key_added}_"`` in
        front for others.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields; bins along ``obs``:

    `.uns["differential_contacts"]` : dict
        A table for each kind of feature, one row each: where it is, the mean count of each group (scaled to like depth,
        decay and visibility), ``log2_fold_change``, ``standard_error`` (of it), ``statistic``, ``pval`` (two-sided) and
        ``qval`` (Benjamini and Hochberg, over the table).

        - ``loops``: BEDPE columns; ``ring_log2_fold_change`` is that of the loop's surroundings, so that a loop is told
          from the domain it lies in
        - ``boundaries``: the boundary before each bin; the change is that of its strength, contacts beside over across
        - ``compartments``: each bin; the change is that of its contacts with A over those with B
        - ``interactions``: blocks of pairs of bins
        - ``decay``: share of the contacts by distance, with Student's t of replicates; what this finds has been taken
          out of the other tables

        And ``strength`` of each replicate; ``variance`` (dispersion and degrees of freedom of each kind);
        ``params``, ``version``, ``report``.
    `.obs[["boundary_change", "boundary_change_qval"]]` : float64
        Change of boundary strength (log2) and its q-value; NaN where not tested.
    `.obs[["compartment_change", "compartment_change_qval"]]` : float64
        The same of compartments.

    Raises
    ------
    KeyError
        If a map, the loops or the compartments are missing.
    ValueError
        If there are not two groups, a map is in both, or a map holds no counts. Nothing has been written then.

    Notes
    -----
    With one replicate in each group no dispersion can be seen: the whole difference between the groups, of most
    features, stands in for it. The variance is then too wide rather than too narrow, a warning says so, and few changes
    are found. A change that moves all of a kind alike, all loops weaker say, is a difference between libraries as much
    as one between conditions; it is in the tables nonetheless.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(400, n_replicates=2, n_conditions=2)
    >>> dbio.tl.differential_contacts(
    ...     adata,
    ...     groups={"a": ["contacts_a_1", "contacts_a_2"], "b": ["contacts_b_1", "contacts_b_2"]},
    ...     features=["loops"],
    ...     loops=adata.uns["truth"]["loops"],
    ... )
    >>> table = adata.uns["differential_contacts"]["loops"]
    >>> bool((table["qval"] < 0.05).any())
    True
    """
    check_options(
        differential_contacts,
        locals(),
        loop_reach="[0, 3]",
        window="(0, inf) base pairs",
        compartment_distance="(0, inf) base pairs",
        interaction_size="(0, inf) base pairs",
        max_distance="(0, inf) base pairs",
        min_count="[1, inf)",
        dispersion="[0, inf)",
    )
    started = time.perf_counter()
    require_anndata(adata)
    names, keys, group = _groups(groups)
    chosen = _features(features)
    contacts = [read_contacts(adata, key, axis=axis) for key in keys]
    for key, each in zip(keys, contacts, strict=True):
        if not each.map.counts.nnz:
            raise ValueError(f"the map {key!r} holds no contacts: leave it out of groups.")
    first = contacts[0]
    resolution = first.map.resolution
    if window is not None:
        in_bins("window", window, resolution, 2)
    settings = Settings(
        loop_reach=int(loop_reach),
        window=10 * resolution if window is None else int(window),
        compartment_distance=in_bins("compartment_distance", compartment_distance, resolution) * resolution,
        interaction_size=resolution
        * (10 if interaction_size is None else in_bins("interaction_size", interaction_size, resolution)),
        max_distance=in_bins("max_distance", max_distance, resolution) * resolution,
        least_count=float(min_count),
        dispersion=dispersion,
    )
    anchors, loop_table = _loops(adata, loops, first) if "loops" in chosen else (None, None)
    compartment = _compartment(adata, compartment_key, first, "compartments" in chosen)
    if min(np.bincount(group)) < 2 and dispersion is None:
        warnings.warn(
            f"{names[int(np.argmin(np.bincount(group)))]!r} has one replicate: "
            + (
                "the differences between the groups stand in for those between replicates, so that the variance is too "
                "wide and few changes are found. Add replicates, or pass dispersion= from other data."
                if len(group) == 2
                else "its variance is taken from the other group."
            ),
            UserWarning,
            stacklevel=2,
        )
    maps = [each.map for each in contacts]
    good = good_bins(maps)
    results = compare_maps(
        maps,
        group,
        settings,
        features=chosen,
        good=good,
        loops=anchors,
        compartment=compartment,
        rng=np.random.default_rng(rng),
    )
    tables = {name: _table(name, results.get(name), first, group, loop_table) for name in chosen}
    tables["decay"] = _decay_table(compare_decay(maps, group, good), names, group, resolution)
    columns = _columns(tables, results, first, prefix_of(key_added, "differential_contacts"))
    params = {
        "groups": names,
        "maps": keys,
        "group_of_map": [names[code] for code in group],
        "features": list(chosen),
        "loop_reach": settings.loop_reach,
        "window": settings.window,
        "compartment_distance": settings.compartment_distance,
        "interaction_size": settings.interaction_size,
        "max_distance": settings.max_distance,
        "min_count": settings.least_count,
        "dispersion": dispersion,
    }
    report = {
        "converged": True,
        "replicated": bool(min(np.bincount(group)) > 1),
        "seconds": time.perf_counter() - started,
    }
    record = make_record(
        params, report, **tables, variance=_variance_table(results), strength=_strength(results, keys, names, group)
    )
    for name in chosen:
        logger.info(f"{name}: {int((tables[name]['qval'] < 0.05).sum())} of {len(tables[name])} differ (q < 0.05).")
    adata = adata.copy() if copy else adata
    first.axis.write(adata, columns=columns, uns={key_added: record})
    return adata if copy else None


def _groups(groups: Any) -> tuple[list[str], list[str], np.ndarray]:
    """Names of both groups, keys of the maps, and the group of each map."""
    if not isinstance(groups, Mapping):
        raise TypeError(f"groups must map two names to keys of maps, found {type(groups).__name__}.")
    if len(groups) != 2:
        raise ValueError(f"groups must hold two groups, found {len(groups)}: {list(groups)}.")
    for name, keys in groups.items():
        if isinstance(keys, str) or not len(keys):
            raise ValueError(f"groups[{name!r}] must be a list of at least one key of .obsp, found {keys!r}.")
    every = [str(key) for keys in groups.values() for key in keys]
    twice = sorted({key for key in every if every.count(key) > 1})
    if twice:
        raise ValueError(f"each map belongs to one group, once; found twice: {twice}.")
    group = np.repeat([0, 1], [len(keys) for keys in groups.values()])
    return [str(name) for name in groups], every, group


def _features(features: Any) -> tuple[str, ...]:
    wanted = (features,) if isinstance(features, str) else tuple(features)
    unknown = [name for name in wanted if name not in FEATURES]
    if unknown or not wanted:
        raise ValueError(f"features must be some of {list(FEATURES)}, found {list(wanted)}.")
    return tuple(name for name in FEATURES if name in wanted)


def _loops(adata: AnnData, loops: Any, contacts: Contacts) -> tuple[tuple[np.ndarray, np.ndarray], pd.DataFrame]:
    """Bins of both anchors, and the table of the loops that lie in the map."""
    if isinstance(loops, str):
        record = in_memory(adata.uns.get(loops))
        if record is None or "table" not in record:
            raise KeyError(
                f"adata.uns has no loops {loops!r}: run dbio.tl.loops on the pooled map first, pass loops= as a table, "
                f"or leave 'loops' out of features; keys: {[str(key) for key in adata.uns]}."
            )
        loops = record["table"]
    first, second, kept = read_pairs(loops, contacts, "loops")
    if not kept.all():
        warnings.warn(f"{int((~kept).sum())} of {len(loops)} loops lie outside the map.", UserWarning, stacklevel=3)
    table = loops.loc[kept, list(PAIR_COLUMNS)].reset_index(drop=True)
    return (first[kept], second[kept]), table


def _compartment(adata: AnnData, key: str, contacts: Contacts, needed: bool) -> np.ndarray | None:
    table = getattr(adata, contacts.axis.axis)
    if key not in table:
        if not needed:
            return None
        raise KeyError(
            f"adata.{contacts.axis.axis} has no column {key!r}: run dbio.tl.compartments on the pooled map first, or "
            "leave 'compartments' out of features."
        )
    values = numbers_or_nan(table, key)
    if needed and not np.nan_to_num(values).any():
        raise ValueError(f"adata.{contacts.axis.axis}[{key!r}] holds no compartments: all values are 0 or missing.")
    return contacts.to_map(values)


def _table(
    name: str, result: Comparison | None, contacts: Contacts, group: np.ndarray, loop_table: pd.DataFrame | None
) -> pd.DataFrame:
    where, sign = _where(name, result, contacts, loop_table)
    size = len(next(iter(where.values())))
    values = {key: np.full(size, np.nan) for key in ("log2_fold_change", "standard_error", "statistic", "pval", "qval")}
    means = np.full((size, 2), np.nan)
    if result is not None and size:
        test, rows = result.test, result.tested
        values["log2_fold_change"][rows] = sign * test.effect / _LN2
        values["standard_error"][rows] = test.error / _LN2
        values["statistic"][rows] = sign * test.statistic
        values["pval"][rows] = test.pvalue
        values["qval"][rows] = result.qvalue
        average = result.expected.mean(1)
        for code in (0, 1):
            mine = group == code
            expected = np.maximum(result.expected[:, mine].sum(1), 1e-12)
            means[:, code] = average * result.counts[:, mine].sum(1) / expected
    table = pd.DataFrame({**where, "mean_1": means[:, 0], "mean_2": means[:, 1], **values})
    if name == "loops":
        ring = result.place["ring_effect"] / _LN2 if result is not None else np.empty(0)
        table.insert(table.columns.get_loc("standard_error"), "ring_log2_fold_change", ring)
    return table


def _where(
    name: str, result: Comparison | None, contacts: Contacts, loop_table: pd.DataFrame | None
) -> tuple[dict[str, Any], float]:
    """Columns that say where each feature is, and the sign by which its effect is a gain."""
    place = {} if result is None else result.place
    found = contacts.map
    labels = np.array(found.chrom_names, dtype=object)
    empty = np.empty(0, np.int64)
    if name == "loops":
        assert loop_table is not None
        # Chromosome by chromosome, so in another order than the table.
        number = _loop_order(loop_table, result, contacts)
        return {key: loop_table[key].to_numpy()[number] for key in PAIR_COLUMNS}, 1.0
    if name == "interactions":
        one, two = place.get("bin1", empty), place.get("bin2", empty)
        stop1, stop2 = place.get("stop1", empty), place.get("stop2", empty)
        chrom = labels[found.chrom[one]]
        return {
            "chrom1": chrom,
            "start1": found.start[one],
            "end1": found.end[stop1 - 1],
            "chrom2": chrom,
            "start2": found.start[two],
            "end2": found.end[stop2 - 1],
        }, 1.0
    bins = place.get("bin", empty)
    # A stronger boundary has fewer contacts across.
    return {"chrom": labels[found.chrom[bins]], "start": found.start[bins], "end": found.end[bins]}, (
        -1.0 if name == "boundaries" else 1.0
    )


def _loop_order(loop_table: pd.DataFrame, result: Comparison | None, contacts: Contacts) -> np.ndarray:
    if result is None:
        return np.empty(0, np.int64)
    code = pd.Index(contacts.map.chrom_names).get_indexer(loop_table["chrom1"].astype(str))
    return np.argsort(code, kind="stable")


def _decay_table(decay: dict[str, np.ndarray], names: list[str], group: np.ndarray, resolution: int) -> pd.DataFrame:
    from scipy.stats import false_discovery_control

    pvalue = decay["pvalue"]
    qvalue = np.full_like(pvalue, np.nan)
    known = np.isfinite(pvalue)
    if known.any():
        qvalue[known] = false_discovery_control(pvalue[known])
    return pd.DataFrame(
        {
            "start": decay["start"] * resolution,
            "end": decay["stop"] * resolution,
            "mean_1": decay["share"][:, group == 0].mean(1),
            "mean_2": decay["share"][:, group == 1].mean(1),
            "log2_fold_change": decay["effect"] / _LN2,
            "pval": pvalue,
            "qval": qvalue,
        }
    )


def _columns(
    tables: dict[str, pd.DataFrame], results: dict[str, Comparison], contacts: Contacts, prefix: str
) -> dict[str, np.ndarray]:
    columns = {}
    for name, stem in (("boundaries", "boundary"), ("compartments", "compartment")):
        if name not in results:
            continue
        for source, suffix in (("log2_fold_change", "change"), ("qval", "change_qval")):
            values = np.full(contacts.map.n_bins, np.nan)
            values[results[name].place["bin"]] = tables[name][source]
            columns[f"{prefix}{stem}_{suffix}"] = contacts.to_axis(values)
    return columns


def _variance_table(results: dict[str, Comparison]) -> pd.DataFrame:
    """What the variance of each kind of feature was, and how replicates against replicates came out."""
    return pd.DataFrame(
        {
            "feature": list(results),
            "dispersion": [float(np.median(result.variance.dispersion)) for result in results.values()],
            "prior_df": [float(result.variance.prior_df) for result in results.values()],
            "residual_df": [int(result.variance.residual_df) for result in results.values()],
            "inflation": [float(result.inflation) for result in results.values()],
            "null_share": [float(result.null_share) for result in results.values()],
            "n_tested": [int(result.tested.sum()) for result in results.values()],
        }
    )


def _strength(results: dict[str, Comparison], keys: list[str], names: list[str], group: np.ndarray) -> pd.DataFrame:
    """Contacts in all features of a kind over those expected, for each replicate: what moves all of a kind alike."""
    columns = {
        name: result.counts[result.tested].sum(0) / np.maximum(result.expected[result.tested].sum(0), 1e-12)
        for name, result in results.items()
        if name == "loops"
    }
    return pd.DataFrame({"map": keys, "group": [names[code] for code in group], **columns})
