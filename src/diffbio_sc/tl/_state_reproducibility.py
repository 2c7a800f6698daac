from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata import require_anndata
from diffbio_sc._anndata.chromatin_states import DEFAULT_KEY, read_model_record, read_posterior, read_states
from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._anndata.tables import in_memory, read_labels, read_table
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc.engines.chromatin_state_names import match_emissions
from diffbio_sc.get import chromatin_state_model
from diffbio_sc.numerics.chains.agreement import (
    border_distance,
    count_rates,
    cross_fitted_rates,
    found_again,
    overlap_matches,
    reliability,
    strata,
)

if TYPE_CHECKING:
    from anndata import AnnData

Match = Literal["auto", "labels", "emission", "overlap"]

_MATCHES = ("auto", "labels", "emission", "overlap")
_LEVELS = 10
_FEWEST_BINS = 1000  # in all, and of a block
_BLOCKS = 10  # of each fold and chromosome, at most


def state_reproducibility(
    adata: AnnData,
    other: AnnData | None = None,
    *,
    replicate_key: str | None = None,
    cell_type_key: str | None = None,
    key: str = DEFAULT_KEY,
    other_key: str | None = None,
    match: Match | Mapping[str, str] = "auto",
    tolerance: int = 0,
    n_folds: int = 10,
    axis: Literal["var", "obs"] | None = None,
    key_added: str = "state_reproducibility",
    copy: bool = False,
) -> AnnData | None:
    """Estimate, for each bin, the probability that its chromatin state comes back in another replicate.

    Posteriors of a model are sure of themselves: they know the noise within the model, not that between experiments.
    Two annotated replicates tell how often a state that was called is called again, by the state, its posterior and the
    place in its segment. These rates are the probabilities, so that of the bins with a probability of .8 four in five
    come back.

    Parameters
    ----------
    adata
        Annotated object, whose bins get a probability.
    other
        Object with the second replicate's states at the same bins (in any order; bins of one side alone are left out).
    replicate_key
        In place of ``other``: column of the bins that names one of two replicates, both in ``adata``. Both get
        probabilities.
    cell_type_key
        Column with the cell type of each bin; bins are paired within cell types. Default that of the states, or, with
        ``replicate_key``, none.
    key, other_key
        The ``key_added`` of the states, and of those of the second replicate; default the same. With neither ``other``
        nor ``replicate_key`` both are in ``adata``, such as states from two halves of the marks.
    match
        Which states of the two belong together: ``"labels"``, those of one name, for one model or two that
        :func:`~diffbio_sc.tl.match_states` named alike; ``"emission"``, one to one by their emissions;
        ``"overlap"``, for each state the other's that shares most bins with it, over their union; or a mapping from
        label to label. ``"auto"``: labels if both come from one model, else emissions if marks are shared, else
        overlap.
    tolerance
        Bins away at which a state still counts as come back. SAGAconf allows 1000 bases, 5 bins of 200.
    n_folds
        Folds of whole chromosomes. A bin's probability comes from the other folds. With fewer than three chromosomes
        each is cut into blocks that go to the folds in turn.
    axis
        Which axis holds the bins, if both could.
    key_added
        Column of the probabilities, and key of the result.
    copy
        Return a copy rather than write into ``adata``.

    Returns
    -------
    None, or the copy. Writes

    - ``.obs[key_added]`` (``.var`` if bins are there): float32; NaN without a state or a partner
    - ``.uns[key_added]``: ``params``, ``version``, ``report``, and the tables ``states`` (for each replicate and state:
      ``match``, ``bins``, the rate ``found`` with its standard error ``found_se`` from leaving out chromosomes, the
      rate ``by_chance`` for states placed at random, ``posterior``, the mean posterior of the call), ``reliability``
      (in ten levels of the probability: ``bins``, mean ``predicted``, ``found``), ``overlap`` (bins of each pair of
      states), and ``summary`` (for each replicate: ``bins``, ``found``, ``by_chance``, ``kappa``, ``brier`` score and
      ``calibration_error``, the mean distance from predicted to found over bins). ``by_chance`` and ``kappa`` are
      those of the bin itself, whatever the tolerance.

    Raises
    ------
    KeyError
        If states, a column or a label is not there.
    ValueError
        If the replicates are not two, or share no bins.

    Notes
    -----
    What is estimated is agreement with a replicate of the second one's kind and quality, annotated likewise: not that
    a state is true, and not the agreement with a deeper or poorer experiment. Errors that both replicates share, such
    as those of an antibody, do come back. Mind that two halves of the marks see different things, and agree less than
    replicates would.

    The estimator, a table of rates cross-fitted over chromosomes, is described in
    ``diffbio_sc.numerics.chains.agreement``. SAGAconf :cite:p:`ForoozandehShahraki2024` fits an isotonic curve of the
    posterior to each state on the bins that it is applied to.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_replicates=2)
    >>> adata.obs["chromatin_state"] = adata.obs["truth"]
    >>> dbio.tl.state_reproducibility(adata, replicate_key="replicate")
    >>> float(adata.obs["state_reproducibility"].min()) > 0.99  # both replicates have the true states
    True
    """
    check_options(state_reproducibility, locals(), tolerance="[0, inf)", n_folds="[2, inf)")
    tolerance, n_folds = int(tolerance), int(n_folds)
    began = time.perf_counter()
    require_anndata(adata)
    if other is not None and replicate_key is not None:
        raise ValueError("pass other= or replicate_key=, found both.")
    other_key = other_key or key
    if replicate_key is not None:
        bases = _split(adata, key, replicate_key, cell_type_key, axis)
        pairs = [(bases[0], bases[1]), (bases[1], bases[0])]
        same_model = True
    else:
        if other is None and other_key == key:
            raise ValueError(
                "expected a second replicate: an object as other=, a column that tells two replicates apart as "
                "replicate_key=, or the key of other states of this object as other_key=."
            )
        second = adata if other is None else other
        base = _read(adata, key, cell_type_key, axis, "adata")
        pairs = [(base, _read(second, other_key, cell_type_key, axis if other is None else None, "other"))]
        same_model = _same_model(adata, key, second, other_key)
    length = adata.n_obs if pairs[0][0].axis == "obs" else adata.n_vars
    column = np.full(length, np.nan, np.float32)
    tables: dict[str, list[pd.DataFrame]] = {"states": [], "reliability": [], "overlap": [], "summary": []}
    for base, second_base in pairs:
        compared = _Comparison(base, second_base, n_folds)
        if replicate_key is None:
            chosen = _matched(match, base, second_base, compared, same_model, (adata, key), (second, other_key))
        else:
            chosen = _matched(match, base, second_base, compared, same_model, (adata, key), (adata, key))
        probability, results = compared.run(chosen, tolerance)
        column[base.positions[compared.rows]] = probability
        for name, table in results.items():
            tables[name].append(table.assign(replicate=base.name))
    report = {"seconds": time.perf_counter() - began, "folds": compared.n_folds, "whole_chromosomes": compared.whole}
    params = {
        "replicate_key": replicate_key,
        "cell_type_key": cell_type_key,
        "key": key,
        "other_key": other_key,
        "match": match if isinstance(match, str) else "mapping",
        "tolerance": tolerance,
        "n_folds": n_folds,
        "axis": pairs[0][0].axis,
    }
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    record = make_record(params, report, **joined)
    adata = adata.copy() if copy else adata
    write_results(adata, **{pairs[0][0].axis: {key_added: column}}, uns={key_added: record})
    return adata if copy else None


@dataclasses.dataclass(frozen=True)
class _Annotation:
    """States of one replicate, bin by bin."""

    name: str
    axis: Literal["var", "obs"]
    positions: np.ndarray
    """Positions along the object's axis."""
    place: pd.MultiIndex
    """Cell type, chromosome, start and end of each bin."""
    codes: np.ndarray
    labels: list[str]
    posterior: np.ndarray
    """Posterior of the bin's state."""
    sequences: list[np.ndarray]
    """Runs of bins without a gap, as positions within this annotation."""


def _read(
    adata: AnnData, key: str, cell_type_key: str | None, axis: Literal["var", "obs"] | None, name: str
) -> _Annotation:
    states = read_states(adata, key, cell_type_key=cell_type_key, axis=axis, name=name)
    parts = states.parts
    rows = np.concatenate([part.positions for part in parts])
    starts = np.cumsum([0] + [len(part.positions) for part in parts])
    sequences = [
        start + sequence for start, part in zip(starts, parts, strict=False) for sequence in part.genome.sequences
    ]
    return _annotation(adata, key, states, rows, parts, sequences, name)


def _annotation(adata, key, states, rows, parts, sequences, name) -> _Annotation:
    codes = states.codes[rows]
    posterior = read_posterior(adata, key, states.axis, len(states.labels))
    if posterior is None:
        logger.info(f"{name} has no posterior of its states; probabilities rest on the states and segments alone.")
        confidence = np.ones(len(rows))
    else:
        if posterior.shape[1] != len(states.labels):
            raise ValueError(
                f"the posterior of {name} has {posterior.shape[1]} states, its labels are {len(states.labels)}: "
                f"{states.labels[:20]}."
            )
        confidence = posterior[rows, np.maximum(codes, 0)].astype(np.float64)
    # One cell type has one genome; its name need not be the same in both objects.
    alone = len(parts) == 1
    frames = [part.genome.table.assign(group="" if alone or part.name is None else part.name) for part in parts]
    table = pd.concat(frames)
    place = pd.MultiIndex.from_arrays(
        [table["group"].astype(str), table["chrom"].astype(str), table["start"], table["end"]]
    )
    return _Annotation(name, states.axis, rows, place, codes, states.labels, confidence, sequences)


def _split(
    adata: AnnData, key: str, replicate_key: str, cell_type_key: str | None, axis: Literal["var", "obs"] | None
) -> list[_Annotation]:
    """Two replicates in one object."""
    sides: list[Literal["var", "obs"]] = ["obs", "var"] if axis is None else [axis]
    found = [name for name in sides if replicate_key in getattr(adata, name)]
    if not found:
        raise KeyError(
            f"no column {replicate_key!r} in adata.{' or adata.'.join(sides)}; columns: "
            f"{[str(name) for side in sides for name in getattr(adata, side).columns]}."
        )
    side = found[0]
    codes, names = read_labels(getattr(adata, side), replicate_key, name=f"adata.{side}")
    if len(names) != 2:
        raise ValueError(
            f"adata.{side}[{replicate_key!r}] must name two replicates, found {len(names)}: {names[:10]}; take two of "
            "them, adata[adata.obs[...].isin([...])]."
        )
    annotations = []
    for code, name in enumerate(names):
        rows = np.flatnonzero(codes == code)
        part_data = _bare(adata, rows, side, key)
        states = read_states(part_data, key, cell_type_key=cell_type_key or replicate_key, axis=side)
        inner = np.concatenate([part.positions for part in states.parts])
        starts = np.cumsum([0] + [len(part.positions) for part in states.parts])
        sequences = [
            start + sequence
            for start, part in zip(starts, states.parts, strict=False)
            for sequence in part.genome.sequences
        ]
        annotation = _annotation(part_data, key, states, inner, states.parts, sequences, name)
        annotations.append(dataclasses.replace(annotation, positions=rows[inner]))
    return annotations


def _bare(adata: AnnData, rows: np.ndarray, side: str, key: str) -> AnnData:
    """Bins of one replicate with their states, without the matrix."""
    import anndata

    field = adata.obsm if side == "obs" else adata.varm
    kept = {name: np.asarray(field[name])[rows] for name in field if "chromatin_state" in name}
    table = read_table(getattr(adata, side)).iloc[rows]
    uns = {key: in_memory(adata.uns[key])} if key in adata.uns else {}
    return anndata.AnnData(**{side: table, f"{side}m": kept}, uns=uns)


def _same_model(adata: AnnData, key: str, other: AnnData, other_key: str) -> bool:
    """Whether two annotations come from one model."""
    try:
        one, two = read_model_record(adata, key), read_model_record(other, other_key)
    except KeyError:
        return False
    return all(
        np.shape(one[name]) == np.shape(two[name]) and np.array_equal(one[name], two[name])
        for name in ("transition", "emission")
    )


class _Comparison:
    """Bins that both annotations have, in folds of chromosomes."""

    def __init__(self, base: _Annotation, other: _Annotation, n_folds: int):
        if not base.place.is_unique or not other.place.is_unique:
            raise ValueError(
                "bins occur more than once in a replicate: name the column of their cell types as cell_type_key."
            )
        partner = other.place.get_indexer(base.place)
        paired = partner >= 0
        if not paired.any():
            raise ValueError(
                f"the replicates share no bins (cell type, chromosome, start, end): {list(base.place[:2])} and "
                f"{list(other.place[:2])}."
            )
        if not paired.all():
            warnings.warn(
                f"{int((~paired).sum()):,} of {len(paired):,} bins of {base.name!r} have no partner and get no "
                "probability.",
                UserWarning,
                stacklevel=4,
            )
        self.base, self.labels, self.other_labels = base, base.labels, other.labels
        self.codes = base.codes
        theirs = np.where(paired, other.codes[np.maximum(partner, 0)], -1)
        self.theirs = theirs
        self.known = (base.codes >= 0) & (theirs >= 0)
        self.rows = np.flatnonzero(self.known)
        if not len(self.rows):
            raise ValueError("no bin has a state in both replicates.")
        if len(self.rows) < _FEWEST_BINS:
            warnings.warn(
                f"{len(self.rows)} bins are few to estimate rates by state, posterior and place from.",
                UserWarning,
                stacklevel=4,
            )
        self.folds, self.n_folds, self.whole = self._make_folds(n_folds)
        self.joint = np.zeros((len(base.labels), len(other.labels)))
        np.add.at(self.joint, (self.codes[self.rows], theirs[self.rows]), 1)

    def _make_folds(self, n_folds: int) -> tuple[np.ndarray, int, bool]:
        """Fold of each bin: whole chromosomes, the same for all cell types, of about equal sizes."""
        chromosome = self.base.place.codes[1]
        sizes = np.bincount(chromosome[self.known], minlength=len(self.base.place.levels[1]))
        used = np.flatnonzero(sizes)
        if len(used) < 3:
            # Blocks far longer than segments, in turn: folds then see all parts of a chromosome, which differ.
            start = self.base.place.get_level_values(2).to_numpy()
            folds = np.zeros(len(chromosome), np.int64)
            for index in used:
                mine = np.flatnonzero(chromosome == index)
                first, last = start[mine].min(), start[mine].max() + 1
                blocks = n_folds * max(1, min(_BLOCKS, int(sizes[index]) // (n_folds * _FEWEST_BINS)))
                folds[mine] = (start[mine] - first) * blocks // (last - first) % n_folds
            return folds, n_folds, False
        number = min(n_folds, len(used))
        fold_of, filled = np.zeros(len(sizes), np.int64), np.zeros(number)
        for index in used[np.argsort(-sizes[used], kind="stable")]:
            fold_of[index] = int(np.argmin(filled))
            filled[fold_of[index]] += sizes[index]
        return fold_of[chromosome], number, True

    def run(self, matched: np.ndarray, tolerance: int) -> tuple[np.ndarray, dict[str, pd.DataFrame]]:
        """Probability of the bins in ``rows``, and tables."""
        codes = np.where(self.known, self.codes, -1)
        found = found_again(codes, self.theirs, matched, self.base.sequences, tolerance)
        distance = border_distance(self.codes, self.base.sequences)
        number = len(self.labels)
        rates = count_rates(codes, self.base.posterior, distance, found, self.folds, number, self.n_folds)
        fitted, _ = cross_fitted_rates(rates)
        rows = self.rows
        one, two = strata(self.base.posterior[rows], distance[rows])
        probability = fitted[self.folds[rows], codes[rows], one, two]
        hit = found[rows]
        bins, predicted, rate = reliability(probability, hit, _LEVELS)
        levels = pd.DataFrame(
            {
                "lower": np.arange(_LEVELS) / _LEVELS,
                "upper": (np.arange(_LEVELS) + 1) / _LEVELS,
                "bins": bins.astype(np.int64),
                "predicted": predicted,
                "found": rate,
            }
        )
        share = self.joint.sum(0) / self.joint.sum()
        chance = matched.astype(float) @ share
        by_fold, in_fold = rates.found.sum((2, 3)), rates.bins.sum((2, 3))
        total = self.joint.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            agreement = by_fold.sum(0) / total
            posterior = np.bincount(codes[rows], self.base.posterior[rows], minlength=number) / total
        states = pd.DataFrame(
            {
                "state": self.labels,
                "match": [
                    "+".join(label for label, one in zip(self.other_labels, row, strict=True) if one) for row in matched
                ],
                "bins": total.astype(np.int64),
                "found": agreement,
                "found_se": _leave_out_errors(by_fold, in_fold),
                "by_chance": chance,
                "posterior": posterior,
            }
        )
        expected = float((total / total.sum()) @ chance)
        overall = float(hit.mean())
        exact = float(self.joint[matched].sum() / self.joint.sum())
        summary = pd.DataFrame(
            {
                "bins": [len(rows)],
                "found": [overall],
                "by_chance": [expected],
                "kappa": [(exact - expected) / (1 - expected) if expected < 1 else np.nan],
                "brier": [float(((probability - hit) ** 2).mean())],
                "calibration_error": [float(np.nansum(bins * abs(predicted - rate)) / bins.sum())],
            }
        )
        grid = np.meshgrid(np.arange(number), np.arange(len(self.other_labels)), indexing="ij")
        overlap = pd.DataFrame(
            {
                "state": [self.labels[row] for row in grid[0].ravel()],
                "other_state": [self.other_labels[row] for row in grid[1].ravel()],
                "bins": self.joint.ravel().astype(np.int64),
            }
        )
        tables = {"states": states, "reliability": levels, "overlap": overlap, "summary": summary}
        return probability, tables


def _leave_out_errors(found: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Standard errors of rates by leaving out one fold at a time (jackknife of a ratio)."""
    folds = len(bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        left = (found.sum(0) - found) / (bins.sum(0) - bins)
    return np.sqrt((folds - 1) / folds * ((left - left.mean(0)) ** 2).sum(0))


def _matched(
    match: Match | Mapping[str, str],
    base: _Annotation,
    other: _Annotation,
    compared: _Comparison,
    same_model: bool,
    mine: tuple[AnnData, str],
    theirs: tuple[AnnData, str],
) -> np.ndarray:
    """Which states belong together (states, other states)."""
    matched = np.zeros((len(base.labels), len(other.labels)), bool)
    if isinstance(match, Mapping):
        unknown = [name for name in match if name not in base.labels] + [
            name for name in match.values() if name not in other.labels
        ]
        if unknown:
            raise KeyError(f"match names states {unknown[:10]} that are not in {base.labels} and {other.labels}.")
        for one, two in match.items():
            matched[base.labels.index(one), other.labels.index(two)] = True
        return matched
    if match == "labels" or (match == "auto" and same_model):
        for index, label in enumerate(base.labels):
            if label in other.labels:
                matched[index, other.labels.index(label)] = True
        if not matched.any():
            raise ValueError(f"no label is in both replicates: {base.labels[:10]} and {other.labels[:10]}.")
        return matched
    if match in ("auto", "emission"):
        try:
            found = match_emissions(
                chromatin_state_model(mine[0], key=mine[1]), chromatin_state_model(theirs[0], key=theirs[1])
            )
        except (KeyError, ValueError) as error:
            if match == "emission":
                raise
            logger.info(f"States are matched by the bins that they share ({error}).")
        else:
            rows = np.flatnonzero(found.match >= 0)
            matched[rows, found.match[rows]] = True
            return matched
    matched[np.arange(len(base.labels)), overlap_matches(compared.joint)] = True
    return matched
