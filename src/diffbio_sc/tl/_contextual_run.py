"""From checked input to a fitted model and its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffbio_sc._anndata.contextual_data import Context
from diffbio_sc._anndata.contextual_model import ContextualModel
from diffbio_sc._anndata.contextual_results import Fitted
from diffbio_sc.tl._contextual_input import ContextualInput


def fit_contextual(
    data: ContextualInput,
    *,
    motifs: Mapping[str, np.ndarray] | None,
    refine: bool,
    average: bool,
    max_epochs: int | None,
    rng: np.random.Generator,
    random_context: bool = False,
) -> Fitted:
    """Train the model that the input calls for, and predict all regions in all cell types."""
    if data.track is None:
        return _fit_regions(
            data,
            motifs=motifs,
            refine=refine,
            average=average,
            max_epochs=max_epochs,
            rng=rng,
            random_context=random_context,
        )
    return _fit_windows(data, max_epochs=max_epochs, rng=rng, random_context=random_context)


def _fit_regions(data: ContextualInput, *, motifs, refine, average, max_epochs, rng, random_context) -> Fitted:
    from diffbio_sc.engines.contextual import fit_regions

    used = np.flatnonzero(data.split >= 0)
    context = _trained_context(data)
    options: dict[str, Any] = {} if max_epochs is None else {"max_epochs": max_epochs}
    neighbours = data.neighbours
    model = fit_regions(
        data.tokens[used],
        data.labels[used][:, data.labelled],
        chromosome=data.regions.code[used].astype(np.int64),
        split=data.split[used],
        tf_context=None if context is None else context.values,
        random_context=random_context,
        neighbourhood=None if neighbours is None else neighbours.take(used),
        motifs=motifs,
        refine=refine,
        average=average,
        rng=rng,
        **options,
    )
    logits = np.empty(data.labels.shape, np.float32)
    logits[:, data.labelled] = model.predict(data.tokens, neighbourhood=neighbours)
    if not data.labelled.all():
        assert data.context is not None
        logits[:, ~data.labelled] = model.predict(
            data.tokens, neighbourhood=neighbours, tf_context=data.context.values[~data.labelled]
        )
    return Fitted(_describe(data, model, "regions", context), logits, None, dict(model.report))


def _trained_context(data: ContextualInput) -> Context | None:
    """Context of the cell types that have labels."""
    if data.context is None:
        return None
    return Context(data.context.values[data.labelled], data.context.factors)


def _describe(data: ContextualInput, model: Any, kind: str, context: Context | None) -> ContextualModel:
    cells = [name for name, has in zip(data.cell_types, data.labelled, strict=True) if has]
    groups = None if data.neighbours is None else list(data.groups or [])
    return ContextualModel(model, kind, data.mode, cells, data.tokens.shape[1], context, groups)


def _fit_windows(data: ContextualInput, *, max_epochs, rng, random_context) -> Fitted:
    raise NotImplementedError
