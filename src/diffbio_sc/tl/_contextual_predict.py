from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import expit

from diffbio_sc._anndata.contextual_data import Context, align_factors, read_context, read_region_tokens
from diffbio_sc._anndata.contextual_model import DEFAULT_KEY, ContextualModel, read_contextual_model
from diffbio_sc._anndata.contextual_results import prediction_layers
from diffbio_sc._anndata.genome_axis import GenomeAxis
from diffbio_sc._anndata.names import require_unique
from diffbio_sc._anndata.region_axis import read_region_axis, warn_of_names
from diffbio_sc._anndata.results import check_key, make_record
from diffbio_sc._anndata.tf_context import case_hint
from diffbio_sc._checks import is_path, name_heads
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc.tl._contextual_input import read_input_maps, read_neighbourhood
from diffbio_sc.tl._contextual_run import region_of_tokens

if TYPE_CHECKING:
    from anndata import AnnData


def contextual_predict(
    adata: AnnData,
    *,
    model: AnnData | ContextualModel | str | os.PathLike[str] | None = None,
    fasta: Any = None,
    sequences: str = "dna",
    tf_context: str | None = "tf_context",
    contacts: str | None = None,
    neighbourhood: bool | str | None = None,
    axis: Literal["var", "obs"] | None = None,
    key: str = DEFAULT_KEY,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Predict new regions, and cell types of which only expression is known, with a trained sequence model.

    Cell types are matched to the model's by name. Of those that it does not know it needs the expression of
    transcription factors, and predicts from the trained cell types that express alike; what that is worth was measured
    on held-out cell types and is told in the documentation: about as much as taking the nearest cell type's prediction.

    Parameters
    ----------
    adata
        Object of cell types by regions, either way round. Its ``.X`` is not read and may be missing.
    model
        An AnnData that :func:`diffbio_sc.tl.contextual` has written to, the path of a file of
        :func:`diffbio_sc.io.write_contextual_model`, or what :func:`diffbio_sc.io.read_contextual_model` returned.
        Default: ``adata`` itself.
    fasta, sequences
        As in :func:`diffbio_sc.tl.contextual`. Sequences longer or shorter than the model's are an error; regions are
        read from ``fasta`` in its width.
    tf_context
        Key of the expression of the cell types that the model does not know.
    contacts
        Key of contact maps, for a model that takes them as an input.
    neighbourhood
        For a model with neighbourhood: column with the kind of each region, or True. Default: as it was trained.
    axis
        Axis with the regions, if both tables have the columns.
    key
        Key of the model, of an AnnData.
    key_added
        Key of the results; default ``key``.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields:

    `.layers["contextual_logit"]`, `.layers["contextual_prob"]` : float32
        Log-odds and probability of activity.
    `.varm["contextual_track"]` : float32 (regions, cell types, tokens)
        Of a model of windows, probabilities along the regions.
    `.uns["contextual_prediction"]` : dict
        ``params``, ``version`` and ``report``: ``seen_cell_types``, ``new_cell_types``, and of each new one the trained
        cell type whose expression is most alike (``nearest``), and how alike (``similarity``, the cosine of
        z-scores).

    Raises
    ------
    KeyError
        If a key or the axis of regions is missing, or there is no model.
    TypeError
        If ``model`` is of another kind.
    ValueError
        If sequences have another width than the model's, a new cell type has no expression, more than half of the
        factors are missing, or the model was trained without expression.

    Warns
    -----
    UserWarning
        If factors of the model are missing: they are taken as the mean of the trained cell types.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> known, new = adata[:4].copy(), adata[4:].copy()
    >>> dbio.tl.contextual(known, refine=False, average=False)
    >>> dbio.tl.contextual_predict(new, model=known)
    >>> new.layers["contextual_prob"].shape
    (2, 600)
    """
    check_options(contextual_predict, locals())
    began = time.perf_counter()
    check_key(key, "key")
    key_added = key if key_added is None else key_added
    regions = read_region_axis(adata, axis=axis)
    fitted = read_contextual_model(adata if model is None else model, key=key)
    tokens = read_region_tokens(adata, regions, sequences, fasta, fitted.width)
    if tokens.shape[1] != fitted.width:
        raise ValueError(
            f"the model was trained with sequences of {fitted.width:,} bases, found {tokens.shape[1]:,}: read them "
            f"with dbio.pp.sequences(adata, genome, width={fitted.width})."
        )
    cell_types = [str(name) for name in regions.track_names(adata)]
    require_unique(cell_types, "names of cell types", "Make them unique first.")
    new = [name for name in cell_types if name not in fitted.cell_types]
    context = _new_context(adata, regions, fitted, new, cell_types, tf_context)
    warn_of_names(regions)
    options = _options(adata, regions, fitted, contacts, neighbourhood)
    logits, track = predict_regions(fitted, tokens, cell_types, context, options)
    nearest = _nearest(fitted, new, context)
    record = make_record(
        {
            "model": str(model) if is_path(model) else ("adata" if model is None else type(model).__name__),
            "sequences": sequences,
            "tf_context": tf_context if new else None,
            "key": key,
            "axis": regions.axis,
        },
        {
            "n_regions": len(tokens),
            "seen_cell_types": [name for name in cell_types if name in fitted.cell_types],
            "new_cell_types": new,
            "nearest": {name: one for name, (one, _) in nearest.items()},
            "similarity": {name: value for name, (_, value) in nearest.items()},
            "seconds": time.perf_counter() - began,
        },
    )
    logger.info(
        f"Predicted {len(tokens):,} regions in {len(cell_types) - len(new)} trained and {len(new)} new cell types."
    )
    if copy:
        adata = adata.copy()
    matrices = {} if track is None else {f"{key_added}_track": expit(track).astype(np.float32)}
    if fasta is not None:
        matrices[sequences] = tokens
    regions.write(
        adata,
        matrices=matrices,
        layers=prediction_layers(key_added, logits),
        uns={f"{key_added}_prediction": record},
    )
    return adata if copy else None


def _new_context(
    adata: AnnData,
    regions: GenomeAxis,
    fitted: ContextualModel,
    new: list[str],
    cell_types: list[str],
    key: str | None,
) -> Context | None:
    """Expression of the cell types that the model does not know, in the order of its factors."""
    if not new:
        return None
    if fitted.context is None:
        hint = case_hint(new, fitted.cell_types)
        raise ValueError(
            f"the model was trained without expression and knows {name_heads(fitted.cell_types)} alone, found "
            f"{name_heads(new)}.{hint} Train it with tf_context to predict other cell types."
        )
    context = read_context(adata, regions, key, required=True)
    assert context is not None
    rows = [cell_types.index(name) for name in new]
    chosen = Context(context.values[rows], context.factors)
    if not chosen.known.all():
        lacking = [name for name, known in zip(new, chosen.known, strict=True) if not known]
        raise ValueError(
            f"cell types {name_heads(lacking)} are not the model's, {name_heads(fitted.cell_types)}, and have no "
            "expression to predict them from: leave them out, or give them expression with dbio.pp.tf_context."
        )
    mean = fitted.context.values[fitted.context.known].mean(axis=0)
    return align_factors(chosen, fitted.context.factors, mean, stacklevel=4)


def _options(adata, regions: GenomeAxis, fitted: ContextualModel, contacts, neighbourhood) -> dict[str, Any]:
    """What else the model takes: neighbours or contact maps."""
    if fitted.kind == "windows":
        if neighbourhood:
            raise ValueError("the model is one of windows and takes no neighbourhood: leave it out.")
        maps = read_input_maps(adata, regions, fitted, contacts)
        return {} if maps is None else {"contacts": maps}
    read_input_maps(adata, regions, fitted, contacts)
    if fitted.groups is None:
        if neighbourhood:
            raise ValueError(
                "the model was trained without neighbourhood: leave it out, or train it with neighbourhood."
            )
        return {}
    if neighbourhood is None or neighbourhood is False:
        if fitted.groups:
            raise ValueError(
                f"the model tells kinds of regions apart, {fitted.groups}: pass neighbourhood=..., their column."
            )
        neighbourhood = True
    return {"neighbourhood": read_neighbourhood(adata, regions, neighbourhood, fitted.groups or None)[0]}


def predict_regions(
    fitted: ContextualModel, tokens: np.ndarray, cell_types: list[str], context: Context | None, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Log-odds of regions in trained cell types, by name, and in new ones, by expression; also along windows."""
    seen = [place for place, name in enumerate(cell_types) if name in fitted.cell_types]
    unseen = [place for place, name in enumerate(cell_types) if name not in fitted.cell_types]
    columns = np.array([fitted.cell_types.index(cell_types[place]) for place in seen], np.int64)
    parts = []
    if seen:
        parts.append((seen, fitted.model.predict(tokens, **options)[:, columns]))
    if unseen:
        assert context is not None
        parts.append((unseen, fitted.model.predict(tokens, tf_context=context.values, **options)))
    shape = (len(tokens), len(cell_types), *parts[0][1].shape[2:])
    result = np.empty(shape, np.float32)
    for places, values in parts:
        result[:, places] = values
    return (result, None) if fitted.kind == "regions" else (region_of_tokens(result), result)


def _nearest(fitted: ContextualModel, new: list[str], context: Context | None) -> dict[str, tuple[str, float]]:
    """The trained cell type of most similar expression, by the cosine of z-scores over the trained cell types."""
    if context is None or fitted.context is None:
        return {}
    known = fitted.context.known
    trained = fitted.context.values[known]
    mean, spread = trained.mean(axis=0), trained.std(axis=0)
    varies = spread > 0

    def scaled(values: np.ndarray) -> np.ndarray:
        score = (values[:, varies] - mean[varies]) / spread[varies]
        return score / np.maximum(np.linalg.norm(score, axis=1, keepdims=True), 1e-12)

    similarity = scaled(context.values) @ scaled(trained).T
    names = [name for name, has in zip(fitted.cell_types, known, strict=True) if has]
    return {name: (names[int(row.argmax())], float(row.max())) for name, row in zip(new, similarity, strict=True)}
