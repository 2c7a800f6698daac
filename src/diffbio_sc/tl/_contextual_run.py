"""From checked input to a fitted model and its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffbio_sc._anndata.contextual_data import Context
from diffbio_sc._anndata.contextual_model import ContextualModel
from diffbio_sc._anndata.contextual_results import Fitted
from diffbio_sc._checks import name_heads
from diffbio_sc.tl._contextual_input import ContextualInput

# Sizes and training of the attention model, as ``benchmarks/contextual_windows.py choose`` shows them.
_SIZES: dict[str, Any] = {
    "stem_width": 19,
    "stem_filters": 24,
    "intermediate_dim": 128,
    "chromatin_guidance_weight": 0.5,
}
_TRAINING: dict[str, Any] = {"batch_size": 16, "learning_rate": 3e-3, "average": 0.99}
_EPOCHS = 12


def fit_contextual(
    data: ContextualInput,
    *,
    motifs: Mapping[str, np.ndarray] | None,
    refine: bool,
    average: bool,
    max_epochs: int | None,
    rng: np.random.Generator,
    contacts_as: str = "guidance",
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
    return _fit_windows(data, max_epochs=max_epochs, contacts_as=contacts_as, rng=rng, random_context=random_context)


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
        warn_constant=False,  # told by name already
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
    groups = None if data.neighbours is None else list(data.groups or [])
    return ContextualModel(model, kind, data.mode, _trained_cells(data), data.tokens.shape[1], context, groups)


def _fit_windows(data: ContextualInput, *, max_epochs, contacts_as, rng, random_context) -> Fitted:
    from diffbio_sc.engines.contextual_windows import fit_windows
    from diffbio_sc.operators.epigenomics import ContextualEpigenomicsConfig

    assert data.track is not None
    context = _trained_context(data)
    if context is not None and not context.known.all():
        lacking = [name for name, known in zip(_trained_cells(data), context.known, strict=True) if not known]
        raise ValueError(f"cell types {name_heads(lacking)} have labels but no expression: leave them out, or give it.")
    width, n_tokens = data.tokens.shape[1], data.track.shape[2]
    used = np.flatnonzero((data.split == 0) | (data.split == 1))
    with_contacts = data.mode == "tf_plus_chromatin"
    config = ContextualEpigenomicsConfig(
        max_length=width,
        token_width=width // n_tokens,
        num_tf_features=1 if context is None else len(context.factors),
        use_tf_context=context is not None,
        use_chromatin_guidance=with_contacts and contacts_as == "guidance",
        use_contact_input=with_contacts and contacts_as == "input",
        **_SIZES,
    )
    seed = int(rng.integers(2**31 - 1))
    values = None if context is None else context.values
    if random_context and context is not None:
        # As many directions as there are cell types: each is told from the others, by nothing that it expresses.
        values = np.linalg.qr(rng.normal(size=(len(context.values), len(context.values))))[0]
    model = fit_windows(
        data.tokens[used],
        data.track[used][:, data.labelled],
        config,
        tf_context=values,
        contacts=data.contacts[used] if with_contacts and data.contacts is not None else None,
        validation=np.flatnonzero(data.split[used] == 1),
        max_epochs=_EPOCHS if max_epochs is None else max_epochs,
        rng=seed,
        **_TRAINING,
    )
    given = {"contacts": data.contacts} if config.use_contact_input else {}
    track = np.empty(data.track.shape, np.float32)
    track[:, data.labelled] = model.predict(data.tokens, **given)
    if not data.labelled.all():
        assert data.context is not None
        track[:, ~data.labelled] = model.predict(data.tokens, tf_context=data.context.values[~data.labelled], **given)
    return Fitted(_describe(data, model, "windows", context), region_of_tokens(track), track, dict(model.report))


def region_of_tokens(track: np.ndarray) -> np.ndarray:
    """Log-odds that a region is active, of those of its tokens: that not all of them are inactive.

    With independent tokens the odds are 1 / prod(1 - p) - 1, whose logarithm is taken without forming the product.
    """
    inactive = -np.logaddexp(0, track.astype(np.float64)).sum(axis=2)  # log probability that no token is active
    return (np.log(-np.expm1(np.minimum(inactive, -1e-300))) - inactive).astype(np.float32)


def _trained_cells(data: ContextualInput) -> list[str]:
    return [name for name, has in zip(data.cell_types, data.labelled, strict=True) if has]
