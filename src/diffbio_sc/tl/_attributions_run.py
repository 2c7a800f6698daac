"""A trained model as functions of sequences and contexts, and what these say of bases and factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffbio_sc._anndata.contextual_data import Context, align_factors, read_context
from diffbio_sc._anndata.contextual_model import ContextualModel
from diffbio_sc._anndata.genome_axis import GenomeAxis
from diffbio_sc._checks import name_heads
from diffbio_sc.tl._contextual_run import region_of_tokens

if TYPE_CHECKING:
    from anndata import AnnData

_CONTEXTS = 512  # contexts that are predicted together


class Question(NamedTuple):
    """What is asked of a model.

    Attributes
    ----------
    fitted
        The model.
    names
        Cell types.
    context
        Expression: to ask of factors in all of these, otherwise in those that the model does not know; None where it is
        not needed.
    maps
        Contact maps of the regions, of a model that takes them.
    """

    fitted: ContextualModel
    names: list[str]
    context: Context | None
    maps: np.ndarray | None

    @property
    def seen(self) -> np.ndarray:
        """Which cell types the model was trained with."""
        return np.array([name in self.fitted.cell_types for name in self.names])

    @property
    def columns(self) -> np.ndarray:
        """Places of those in the model's output."""
        return np.array([self.fitted.cell_types.index(name) for name in self.names if name in self.fitted.cell_types])


def context_of(
    adata: AnnData, regions: GenomeAxis, fitted: ContextualModel, names: list[str], key: str | None
) -> Context:
    """Expression of cell types in the order of the model's factors.

    Raises
    ------
    ValueError
        If the model was trained without, or a cell type has none.
    """
    if fitted.context is None:
        raise ValueError(
            "the model was trained without expression of factors: train it with tf_context, or ask for bases and "
            f"trained cell types alone. It knows {name_heads(fitted.cell_types)}."
        )
    context = read_context(adata, regions, key, required=True)
    assert context is not None
    everyone = [str(name) for name in regions.track_names(adata)]
    chosen = Context(context.values[[everyone.index(name) for name in names]], context.factors)
    if not chosen.known.all():
        lacking = [name for name, known in zip(names, chosen.known, strict=True) if not known]
        raise ValueError(f"cell types {name_heads(lacking)} have no expression: leave them out, cell_types=...")
    return align_factors(chosen, fitted.context.factors, mean_of(fitted), stacklevel=4)


def mean_of(fitted: ContextualModel) -> np.ndarray:
    """Mean expression over the cell types that a model was trained with."""
    assert fitted.context is not None
    return fitted.context.values[fitted.context.known].mean(axis=0)


def ask_of_bases(
    question: Question, tokens: np.ndarray, method: str, n_references: int, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """Hypothetical contributions (regions, cell types, width, 4)."""
    from diffbio_sc.engines import sequence_attributions as engine

    if method == "ism":
        return engine.mutagenesis(lambda changed, rows: _predict(question, changed, rows), tokens)
    extra = () if question.maps is None else (question.maps,)
    if method == "input_x_gradient":
        return engine.gradients(_logits(question), tokens, *extra)
    references = engine.shuffle_dinucleotides(tokens, n_references, rng)
    return engine.integrated_gradients(_logits(question), tokens, references, *extra, steps=steps)


def ask_of_factors(question: Question, tokens: np.ndarray) -> np.ndarray:
    """How log-odds change with each factor (regions, cell types, factors): as expressed, less at the mean."""
    assert question.context is not None
    mean = mean_of(question.fitted)
    values = question.context.values
    n_cells, n_factors = values.shape
    # The cell types as they are, then each with one factor at the mean.
    contexts = np.repeat(values[:, None], n_factors + 1, axis=1)
    contexts[:, np.arange(1, n_factors + 1), np.arange(n_factors)] = mean
    flat = contexts.reshape(-1, n_factors)
    rows = np.arange(len(tokens))
    parts = [
        _run(question, tokens, rows, tf_context=flat[first : first + _CONTEXTS])
        for first in range(0, len(flat), _CONTEXTS)
    ]
    logits = np.concatenate(parts, axis=1).reshape(len(tokens), n_cells, n_factors + 1)
    return (logits[:, :, :1] - logits[:, :, 1:]).astype(np.float32)


def _predict(question: Question, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Log-odds (sequences, cell types) in the order of the question."""
    result = np.empty((len(tokens), len(question.names)), np.float32)
    if question.seen.any():
        result[:, question.seen] = _run(question, tokens, rows)[:, question.columns]
    if not question.seen.all():
        assert question.context is not None
        result[:, ~question.seen] = _run(question, tokens, rows, tf_context=question.context.values)
    return result


def _run(question: Question, tokens: np.ndarray, rows: np.ndarray, **options: Any) -> np.ndarray:
    if question.maps is not None:
        options["contacts"] = question.maps[rows]
    found = question.fitted.model.predict(tokens, **options)
    return region_of_tokens(found) if question.fitted.kind == "windows" else found


def _logits(question: Question) -> Any:
    """Log-odds of relaxed sequences in JAX, of the cell types asked for."""
    import jax.numpy as jnp

    model, columns = question.fitted.model, question.columns
    if question.fitted.kind == "regions":
        return lambda one_hot: model.one_hot_logits(one_hot)[:, columns]

    def logits(one_hot, *maps):
        data = {"sequence": one_hot}
        if model.operator.config.use_tf_context:
            data["tf_context"] = jnp.asarray(model.contexts[columns])[None]
        if maps:
            data["chromatin_contacts"] = maps[0]
        found = model.operator(data)["logits"]
        if found.ndim == 2:  # without contexts there is one prediction for all cell types
            found = jnp.repeat(found[:, None], len(columns), axis=1)
        inactive = -jnp.logaddexp(0.0, found).sum(axis=2)
        return jnp.log(-jnp.expm1(jnp.minimum(inactive, -1e-7))) - inactive

    return logits
