from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.chromatin_states import (
    DEFAULT_KEY,
    StoredStates,
    read_model_record,
    read_posterior,
    read_states,
)
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData

Kind = Literal["segments", "emissions", "transitions", "coverage"]


def chromatin_states(
    adata: AnnData,
    *,
    kind: Kind = "segments",
    key: str = DEFAULT_KEY,
    column: str | None = None,
    cell_type_key: str | None = None,
    axis: Literal["var", "obs"] | None = None,
) -> pd.DataFrame:
    """Chromatin states as tidy tables: segments, the model, and how much of the genome each state covers.

    Parameters
    ----------
    adata
        Object with states (see :func:`diffbio_sc.tl.chromatin_states`).
    kind
        Which table.
    key
        The ``key_added`` of the states.
    column
        Column with the states of the bins, of segments and coverage; default ``chromatin_state``.
    cell_type_key
        Column with the cell type of each bin; default that of the states.
    axis
        Which axis holds the bins, if both could.

    Returns
    -------
    - ``"segments"``: a row for each run of bins in one state: ``cell_type`` (where told apart), ``chrom``, ``start``,
      ``end``, ``state``, ``color`` and, where posteriors are stored, ``posterior``, the mean of the state's. In genomic
      order; bins without a state are left out. :func:`diffbio_sc.io.write_segments` writes it.
    - ``"emissions"``: a row for each state and mark with ``value`` (probability or mean), ``standard_error`` where
      estimated, and further parameters of the family
    - ``"transitions"``: a row for each pair of states, ``state``, ``next_state``, ``probability``, and
      ``standard_error`` where estimated
    - ``"coverage"``: a row for each cell type and state with ``bases``, ``fraction``, ``segments`` and
      ``mean_length`` of the segments in bases

    Raises
    ------
    KeyError
        If there are no such states.
    ValueError
        If ``kind`` is none of the four.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=2000)
    >>> table = dbio.get.chromatin_states(adata, kind="emissions", key="truth")
    >>> table.loc[0, "mark"], float(table.loc[0, "value"])
    ('H3K4me3', 0.92)
    """
    check_options(chromatin_states, locals())
    kinds = ("segments", "emissions", "transitions", "coverage")
    if kind not in kinds:
        raise ValueError(f"kind must be one of {kinds}, found {kind!r}.")
    if kind == "emissions":
        return _emissions(adata, key)
    if kind == "transitions":
        return _transitions(adata, key)
    states = read_states(adata, key, column=column, cell_type_key=cell_type_key, axis=axis)
    segments = _segments(adata, states, key)
    return segments if kind == "segments" else _coverage(states, segments)


def _labels(record) -> list[str]:
    number = np.shape(record["emission"])[0]
    return [str(label) for label in record.get("states", [f"E{index}" for index in range(1, number + 1)])]


def _emissions(adata: AnnData, key: str) -> pd.DataFrame:
    record = read_model_record(adata, key)
    labels, marks = _labels(record), [str(mark) for mark in record["marks"]]
    columns = {"value": record["emission"]}
    errors = record.get("standard_errors", {})
    if "emission" in errors:
        columns["standard_error"] = errors["emission"]
    columns |= record.get("emission_parameters", {})
    return pd.DataFrame(
        {
            "state": pd.Categorical(np.repeat(labels, len(marks)), categories=labels),
            "mark": pd.Categorical(np.tile(marks, len(labels)), categories=marks),
            **{name: np.asarray(values, np.float64).ravel() for name, values in columns.items()},
        }
    )


def _transitions(adata: AnnData, key: str) -> pd.DataFrame:
    record = read_model_record(adata, key)
    labels = _labels(record)
    table = pd.DataFrame(
        {
            "state": pd.Categorical(np.repeat(labels, len(labels)), categories=labels),
            "next_state": pd.Categorical(np.tile(labels, len(labels)), categories=labels),
            "probability": np.asarray(record["transition"], np.float64).ravel(),
        }
    )
    errors = record.get("standard_errors", {})
    if "transition" in errors:
        table["standard_error"] = np.asarray(errors["transition"], np.float64).ravel()
    return table


def _segments(adata: AnnData, states: StoredStates, key: str) -> pd.DataFrame:
    posterior = read_posterior(adata, key, states.axis, len(states.labels))
    confidence = None
    if posterior is not None and posterior.shape[1] == len(states.labels):
        confidence = posterior[np.arange(len(states.codes)), np.maximum(states.codes, 0)].astype(np.float64)
    frames = []
    for part in states.parts:
        order, table = part.genome.order, part.genome.table
        codes = states.codes[part.positions][order]
        if not len(order):
            continue
        new = np.zeros(len(order), bool)
        new[0] = True
        new[part.genome.breaks] = True
        new[1:] |= codes[1:] != codes[:-1]
        first = np.flatnonzero(new)
        last = np.append(first[1:], len(order)) - 1
        frame = pd.DataFrame(
            {
                "chrom": table["chrom"].array[order[first]].astype(str),
                "start": table["start"].to_numpy()[order[first]],
                "end": table["end"].to_numpy()[order[last]],
                "code": codes[first],
            }
        )
        if confidence is not None:
            total = np.add.reduceat(confidence[part.positions][order], first)
            frame["posterior"] = total / (last - first + 1)
        if part.name is not None:
            frame.insert(0, "cell_type", part.name)
        frames.append(frame[frame["code"] >= 0])
    segments = pd.concat(frames, ignore_index=True)
    codes = segments.pop("code").to_numpy()
    place = list(segments.columns).index("end") + 1
    segments.insert(place, "state", pd.Categorical.from_codes(codes, states.labels))
    segments.insert(place + 1, "color", np.array(states.colors, dtype=object)[codes])
    chromosomes = list(dict.fromkeys(name for part in states.parts for name in part.genome.chromosomes))
    segments["chrom"] = pd.Categorical(segments["chrom"], categories=chromosomes)
    if "cell_type" in segments:
        segments["cell_type"] = pd.Categorical(segments["cell_type"], categories=[part.name for part in states.parts])
    return segments


def _coverage(states: StoredStates, segments: pd.DataFrame) -> pd.DataFrame:
    segments = segments.assign(bases=segments["end"] - segments["start"])
    by = (["cell_type"] if "cell_type" in segments else []) + ["state"]
    table = segments.groupby(by, observed=False)["bases"].agg(bases="sum", segments="size").reset_index()
    total = (
        table.groupby("cell_type", observed=False)["bases"].transform("sum") if len(by) == 2 else table["bases"].sum()
    )
    table["fraction"] = table["bases"] / total
    table["mean_length"] = table["bases"] / table["segments"].where(table["segments"] > 0)
    return table[[*by, "bases", "fraction", "segments", "mean_length"]]
