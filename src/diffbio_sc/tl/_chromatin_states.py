from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.chromatin_states import DEFAULT_KEY, default_colors, stored_name
from diffbio_sc._anndata.marks import MarkData, choose_emission, read_marks
from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel

if TYPE_CHECKING:
    from anndata import AnnData

    from diffbio_sc.numerics.chains.baum_welch import MarkovModel

_EMISSIONS = ("auto", "bernoulli", "poisson", "negative_binomial", "gaussian", "multinomial")


def chromatin_states(
    adata: AnnData,
    *,
    n_states: int = 15,
    model: ChromatinStateModel | str | os.PathLike[str] | AnnData | None = None,
    emission: Literal["auto", "bernoulli", "poisson", "negative_binomial", "gaussian", "multinomial"] = "auto",
    layer: str | None = None,
    mask: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    cell_type_key: str | None = None,
    effort: Literal["fast", "default"] = "default",
    train: bool | None = None,
    max_steps: int = 400,
    tolerance: float = 1e-8,
    decode: Literal["posterior", "viterbi"] = "posterior",
    top_states: int | None = None,
    standard_errors: bool = False,
    key_added: str = DEFAULT_KEY,
    rng: int | np.random.Generator = 0,
    copy: bool = False,
) -> AnnData | None:
    """Annotate bins of a genome with chromatin states, learned from combinations of marks.

    A hidden Markov model: each bin is in one of ``n_states`` states, a state emits each mark independently of the
    others, and states follow each other along a chromosome :cite:p:`Ernst2012`. It is fitted by expectation
    maximisation with an exact forward-backward pass over the whole genome, from several starts, and improved by
    merging and splitting states. With ``model`` a known model annotates the bins, without training. The operator
    beneath, with gradients, is :class:`diffbio_sc.operators.epigenomics.ChromatinStateAnnotator`.

    Parameters
    ----------
    adata
        Object with bins along one axis (columns ``chrom``, ``start`` and ``end`` in its table) and marks along the
        other. NaN is missing. A gap between bins or the end of a chromosome ends a sequence.
    n_states
        Number of states; :func:`diffbio_sc.tl.select_n_states` helps to choose it.
    model
        A model to annotate with: an object, the path of a model file of ChromHMM, or an AnnData that holds one. Marks
        are matched by name; marks that the data lack are summed out of the model, marks that the model lacks are left
        out with a warning.
    emission
        Family of the marks given a state: presence (``"bernoulli"``), counts (``"poisson"``,
        ``"negative_binomial"``), signal (``"gaussian"``), or shares of the marks among the reads of a bin
        (``"multinomial"``). ``"auto"`` takes the first for values of 0 and 1, the third for whole numbers and the
        fourth for others, and says so. Values are never made binary: see :func:`diffbio_sc.pp.binarize`.
    layer
        Layer with the marks; default ``.X``.
    mask
        Layer that is not 0 where a value is known, where missing values are not NaN.
    axis
        Axis with the bins, if both tables have the columns.
    cell_type_key
        Column of the bins' table with their cell type. Each cell type's chromosomes are sequences of their own under
        one model.
    effort
        ``"default"`` looks long for a good optimum, ``"fast"`` takes the best of three starts and few moves.
    train
        With ``model``: train from it rather than only annotate. Exact zeros stay zero.
    max_steps
        Most steps of the last training.
    tolerance
        The last training ends when a step gains less log-likelihood than this for each bin.
    decode
        Whether ``chromatin_state`` is each bin's most probable state or its state on the most probable path.
    top_states
        Store only so many states of each bin with their probabilities, not the whole posterior.
    standard_errors
        Whether to estimate standard errors of emissions and transitions, by resampling sequences.
    key_added
        Key of the record in ``.uns``; a key other than the default also goes before the names of the columns.
    rng
        Seed or generator of starts and moves.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields (on ``.obs`` and ``.obsm``, or ``.var`` and ``.varm`` if bins are there):

    `.obs["chromatin_state"]` : category
        State of each bin (see ``decode``), ``"E1"`` to the number of states or the model's names.
    `.obs["chromatin_state_viterbi"]` : category
        State on the most probable path.
    `.obsm["chromatin_state_posterior"]` : float32 (bins, states)
        Probability of each state.
    `.obsm["chromatin_state_top"]`, `.obsm["chromatin_state_top_probability"]` : int16, float32 (bins, top_states)
        Instead of the posterior if ``top_states`` is given: positions of the most probable states and their
        probabilities.
    `.uns["chromatin_states"]` : dict
        ``initial``, ``transition``, ``emission`` (states, marks), ``emission_kind``, ``emission_parameters``,
        ``marks``, ``states``, ``colors``, ``log_likelihood``, ``log_likelihood_per_bin``, ``history``, with
        ``standard_errors`` if asked for, ``params``, ``version`` and ``report``.

    Raises
    ------
    KeyError
        If a layer, column or the axis of bins is missing.
    ValueError
        If values do not fit the emission, bins overlap or occur twice, names of marks occur twice, there are fewer bins
        than states, an argument is out of range, or the model cannot make the data. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=2000)
    >>> dbio.tl.chromatin_states(adata, n_states=4, effort="fast")
    >>> adata.obsm["chromatin_state_posterior"].shape
    (2000, 4)
    """
    check_options(
        chromatin_states,
        locals(),
        n_states="[1, 1000]",
        max_steps="[1, inf)",
        tolerance="[0, inf)",
        top_states="[1, inf)",
    )
    n_states, max_steps = int(n_states), int(max_steps)
    top_states = None if top_states is None else int(top_states)
    began = time.perf_counter()
    params = {name: value for name, value in locals().items() if name not in ("adata", "began", "model")}
    params["model"] = None if model is None else _name_of(model)
    _check_arguments(adata, n_states, emission, effort, decode, top_states, max_steps, tolerance, model, train, copy)
    given = None if model is None else _read_model(model)
    data = _read_data(adata, given, layer, mask, axis, cell_type_key)
    if given is not None:
        given = given.marginalise(data.marks)
        emission = given.emission_kind
    family = choose_emission(data.kinds, emission, adata, data.axis)
    params["emission"], params["axis"] = family, data.axis
    _warn_about_marks(data)
    if given is None:
        _check_number(data, n_states, family)
    states = n_states if given is None else given.n_states
    if top_states is not None and top_states > states:
        raise ValueError(f"top_states must be at most the {states} states, found {top_states}.")
    if copy:
        adata = adata.copy()

    from diffbio_sc.engines import chromatin_states as engine

    observations = data.observations(discrete=family != "gaussian")
    known = None if given is None else engine.from_state_model(given)
    report: dict[str, Any]
    history: np.ndarray
    if known is None or train:
        fitted = engine.fit_states(
            observations,
            states,
            family=family,
            effort=effort,
            max_steps=max_steps,
            tolerance=tolerance,
            rng=np.random.default_rng(rng),
            start=known,
        )
        chain, report, history = fitted.model, fitted.as_dict(), fitted.history
    else:
        chain, history = known, np.zeros(0)
        report = {"history": {}, "converged": True, "steps": 0}
    decoded = engine.decode(observations, chain, top=top_states)
    total = float(decoded.log_likelihood.sum())
    errors = engine.standard_errors(observations, chain, rng=np.random.default_rng(rng)) if standard_errors else None
    report["seconds"] = time.perf_counter() - began
    found = _named(chain, data, given, total)
    logger.info(
        f"{states} chromatin states of {observations.n_positions} bins and {len(data.marks)} marks ({family}): "
        f"log-likelihood {total / observations.n_positions:.5f} a bin."
    )
    record = make_record(
        params,
        report,
        initial=found.initial,
        transition=found.transition,
        emission=found.emission,
        emission_kind=family,
        emission_parameters=dict(found.emission_parameters),
        marks=list(found.marks),
        states=list(found.states),
        colors=list(found.colors),
        log_likelihood=total,
        log_likelihood_per_bin=total / observations.n_positions,
        history=np.asarray(history, np.float64),
        standard_errors=errors,
    )
    _write(adata, data, decoded, list(found.states), decode, key_added, record)
    return adata if copy else None


def _check_arguments(
    adata, n_states, emission, effort, decode, top_states, max_steps, tolerance, model, train, copy
) -> None:
    if train and model is None:
        raise ValueError("train=True trains from a given model: pass model=..., or leave train out.")


def _name_of(model: Any) -> str:
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    return f"{type(model).__name__} of {getattr(model, 'n_states', '?')} states"


def _read_model(model: Any) -> ChromatinStateModel:
    if isinstance(model, ChromatinStateModel):
        return model
    if isinstance(model, str | os.PathLike):
        from diffbio_sc.io import read_chromhmm_model

        return read_chromhmm_model(model)
    if hasattr(model, "uns"):
        from diffbio_sc.get import chromatin_state_model

        return chromatin_state_model(model)
    raise TypeError(
        f"model must be a ChromatinStateModel, the path of a model file of ChromHMM or an AnnData that holds a model, "
        f"found {type(model).__name__}."
    )


def _read_data(adata, given: ChromatinStateModel | None, layer, mask, axis, cell_type_key) -> MarkData:
    if given is None:
        return read_marks(adata, layer=layer, mask=mask, axis=axis, cell_type_key=cell_type_key)
    from diffbio_sc._anndata.cell_types import read_cell_type_bins

    side, _ = read_cell_type_bins(adata, cell_type_key, axis=axis)
    found = [str(name) for name in (adata.var_names if side == "obs" else adata.obs_names)]
    shared = [mark for mark in given.marks if mark in found]
    if not shared:
        raise ValueError(f"no mark of the data is a mark of the model: {found[:10]} and {list(given.marks)[:10]}.")
    lacking, extra = [mark for mark in given.marks if mark not in found], [mark for mark in found if mark not in shared]
    if lacking:
        logger.warning(f"the data lack the model's marks {lacking}: they are summed out.")
    if extra:
        warnings.warn(f"the model has no marks {extra}: they are left out.", UserWarning, stacklevel=3)
    return read_marks(adata, layer=layer, mask=mask, axis=axis, cell_type_key=cell_type_key, marks=shared)


def _warn_about_marks(data: MarkData) -> None:
    constant = [mark for mark, same in zip(data.marks, data.kinds.constant, strict=True) if same]
    if constant:
        warnings.warn(
            f"marks {constant} have one value in all bins and tell no states apart.", UserWarning, stacklevel=3
        )


def _check_number(data: MarkData, n_states: int, family: str) -> None:
    bins = data.rows.shape[0]
    if n_states > bins:
        raise ValueError(f"n_states={n_states} is more than the {bins} bins.")
    marks = len(data.marks)
    if family == "bernoulli" and marks < 20 and n_states > 2**marks:
        warnings.warn(
            f"n_states={n_states} is more than the {2**marks} combinations of {marks} marks: states differ by "
            "what surrounds them, and the fit is less well determined.",
            UserWarning,
            stacklevel=3,
        )


def _named(chain: MarkovModel, data: MarkData, given: ChromatinStateModel | None, total: float) -> ChromatinStateModel:
    """The model with labels and colours: those of a given one, else numbers, and colours by marks."""
    from diffbio_sc.engines.chromatin_state_names import name_states
    from diffbio_sc.engines.chromatin_states import to_state_model

    found = to_state_model(chain, data.marks, log_likelihood=total)
    if given is not None and found.n_states == given.n_states:
        found = found.rename(given.states, given.colors)
    if found.colors:
        return found
    try:
        colors = name_states(found)[1]
    except ValueError:  # counts and signal, or none of the marks that kinds of states are known by
        colors = default_colors(found.n_states)
    return found.rename(found.states, colors)


def _write(adata, data: MarkData, decoded, states: list[str], decode: str, key: str, record: Mapping[str, Any]) -> None:
    order = data.rows.order
    # Bins of the object that no sequence holds do not occur: every bin belongs to one.
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    categories = pd.Index(states, dtype=object)

    def column(codes):
        return pd.Series(
            pd.Categorical.from_codes(codes[places], categories=categories),
            index=getattr(adata, f"{data.axis}_names"),
        )

    state = column(decoded.path if decode == "viterbi" else decoded.state)
    columns = {
        stored_name(key, "chromatin_state"): state,
        stored_name(key, "chromatin_state_viterbi"): column(decoded.path),
    }
    kept = {
        "chromatin_state_posterior": decoded.posterior,
        "chromatin_state_top": decoded.top,
        "chromatin_state_top_probability": decoded.top_probability,
    }
    in_order = bool((places == np.arange(len(places))).all())
    matrices = {
        stored_name(key, name): None if value is None else value if in_order else value[places]
        for name, value in kept.items()
    }
    matrices = {
        name: value for name, value in matrices.items() if value is not None or name in getattr(adata, f"{data.axis}m")
    }
    write_results(adata, **{data.axis: columns, f"{data.axis}m": matrices, "uns": {key: record}})
