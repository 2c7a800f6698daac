from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffbio_sc._anndata.chromatin_states import DEFAULT_KEY, read_model_record, stored_name
from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._options import check_options
from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel
from diffbio_sc.engines.chromatin_state_names import match_emissions, name_states
from diffbio_sc.get import chromatin_state_model
from diffbio_sc.io import read_chromhmm_model

if TYPE_CHECKING:
    from anndata import AnnData

Reference = ChromatinStateModel | str | os.PathLike[str]

_COLUMNS = ("chromatin_state", "chromatin_state_viterbi")


def match_states(
    adata: AnnData,
    reference: AnnData | Reference | None = None,
    *,
    key: str = DEFAULT_KEY,
    reference_key: str = DEFAULT_KEY,
    rename: bool = True,
    key_added: str = "match_states",
    copy: bool = False,
) -> AnnData | None:
    """Name chromatin states, by their marks or after the states of another model.

    Parameters
    ----------
    adata
        Object with a model of states (see :func:`diffbio_sc.tl.chromatin_states`).
    reference
        Model, file of a model of ChromHMM, or object with a model, whose states lend their names and colours: states
        are matched one to one so that their emissions, of the marks that both have, differ least (Hungarian algorithm).
        By default states are named by their marks: active promoter (H3K4me3, H3K27ac), strong enhancer (H3K4me1,
        H3K27ac), weak enhancer (H3K4me1), transcribed (H3K36me3), heterochromatin (H3K9me3), Polycomb (H3K27me3) and
        quiescent (none of these); beside these poised promoter (H3K4me3, H3K27me3), insulator (CTCF) and, with a
        control among the marks, repetitive.
    key, reference_key
        The ``key_added`` of the states in ``adata`` and in ``reference``.
    rename
        Write the new names and colours into the states; otherwise the table alone.
    key_added
        Key of the table.
    copy
        Return a copy rather than write into ``adata``.

    Returns
    -------
    None, or the copy. Writes

    - ``.uns[key_added]``: ``params``, ``version``, ``report`` and ``table`` with a row for each state: ``state``,
      its new ``name``, ``color``, and of a reference the ``match``, the ``distance`` (mean absolute difference of
      emissions) and ``nearest``, the reference state most alike, which may be matched to another
    - with ``rename``: ``.uns[key]["states"]`` and ``["colors"]``, and the categories of the columns
      ``chromatin_state`` and ``chromatin_state_viterbi``. Names by marks are ``E1_Active_promoter`` and so on; those
      after a reference are its names. A state without a match keeps its name, with ``_unmatched`` after it.

    Raises
    ------
    KeyError
        If there is no model.
    ValueError
        If the models share no mark or have emissions of two families, or states without a reference have none of the
        marks of the names.

    Notes
    -----
    A name is a guess from the marks alone; look at the emissions (:func:`diffbio_sc.pl.chromatin_states`) and at
    enrichments (:func:`diffbio_sc.tl.state_enrichment`).

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=200)
    >>> dbio.tl.match_states(adata, key="truth")
    >>> adata.uns["match_states"]["table"]["name"].tolist()[:2]
    ['E1_Active_promoter', 'E2_Strong_enhancer']
    """
    check_options(match_states, locals())
    record = read_model_record(adata, key)
    model = chromatin_state_model(adata, key=key)
    table: dict[str, Any] = {"state": list(model.states)}
    if reference is None:
        kinds, colors = name_states(model)
        names = [f"E{number}_{kind}" for number, kind in enumerate(kinds, 1)]
        table |= {"name": names, "color": colors}
    else:
        other = _model(reference, reference_key)
        matched = match_emissions(model, other)
        if 2 * len(matched.shared) < model.n_marks:
            warnings.warn(
                f"the models share {len(matched.shared)} marks ({list(matched.shared)}) of {model.n_marks} and "
                f"{other.n_marks}: matches rest on little.",
                UserWarning,
                stacklevel=2,
            )
        left = [state for state, index in zip(model.states, matched.match, strict=True) if index < 0]
        if left:
            warnings.warn(
                f"{model.n_states} states, {other.n_states} in the reference: {left} are left without a match.",
                UserWarning,
                stacklevel=2,
            )
        names = [
            other.states[index] if index >= 0 else f"{state}_unmatched"
            for state, index in zip(model.states, matched.match, strict=True)
        ]
        theirs = other.colors or _colors_by_marks(other)
        colors = [theirs[index] if index >= 0 else "#7f7f7f" for index in matched.match]
        table |= {
            "name": names,
            "color": colors,
            "match": [other.states[index] if index >= 0 else "" for index in matched.match],
            "distance": matched.distance,
            "nearest": [other.states[index] for index in matched.nearest],
        }
    params = {"key": key, "rename": rename, "reference": None if reference is None else _name(reference)}
    uns: dict[str, Any] = {key_added: make_record(params, {}, table=pd.DataFrame(table))}
    fields: dict[str, dict[str, Any]] = {}
    if rename:
        uns[key] = {**record, "states": np.array(names), "colors": np.array(colors)}
        fields = _renamed(adata, key, dict(zip(model.states, names, strict=True)), names)
    adata = adata.copy() if copy else adata
    write_results(adata, uns=uns, **fields)
    return adata if copy else None


def _model(reference: Any, key: str) -> ChromatinStateModel:
    if isinstance(reference, ChromatinStateModel):
        return reference
    if isinstance(reference, str | os.PathLike):
        return read_chromhmm_model(reference)
    if hasattr(reference, "uns"):
        return chromatin_state_model(reference, key=key)
    raise TypeError(
        f"reference must be a ChromatinStateModel, a file of one, or an AnnData that holds one, found "
        f"{type(reference).__name__}."
    )


def _name(reference: Any) -> str:
    return (
        os.path.basename(os.fspath(reference)) if isinstance(reference, str | os.PathLike) else type(reference).__name__
    )


def _colors_by_marks(model: ChromatinStateModel) -> list[str]:
    """Colours of a reference that brings none: by its marks, if they tell."""
    from diffbio_sc._anndata.chromatin_states import default_colors

    try:
        return name_states(model)[1]
    except ValueError:  # other marks, or counts
        return default_colors(model.n_states)


def _renamed(adata: AnnData, key: str, rename: dict[str, str], names: list[str]) -> dict[str, dict[str, Any]]:
    """Columns of states with the new names."""
    fields: dict[str, dict[str, Any]] = {}
    for side in ("obs", "var"):
        frame = getattr(adata, side)
        for column in (stored_name(key, name) for name in _COLUMNS):
            if column in frame:
                labels = (
                    frame[column].astype(object).map(lambda label: rename.get(str(label), label), na_action="ignore")
                )
                fields.setdefault(side, {})[column] = pd.Categorical(labels, categories=names)
    return fields
