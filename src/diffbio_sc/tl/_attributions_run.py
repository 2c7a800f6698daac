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

    if question.fitted.kind == "windows":
        return _ask_windows(question, tokens, method, n_references, steps, rng)
    if method == "ism":
        return engine.mutagenesis(lambda changed, rows: _predict(question, changed), tokens)
    model, columns = question.fitted.model, question.columns

    def logits(one_hot):
        return model.one_hot_logits(one_hot)[:, columns]

    if method == "input_x_gradient":
        return engine.gradients(logits, tokens)
    references = engine.shuffle_dinucleotides(tokens, n_references, rng)
    return engine.integrated_gradients(logits, tokens, references, steps=steps)


def _ask_windows(
    question: Question, tokens: np.ndarray, method: str, n_references: int, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """The same of a model of windows, of the log-odds summed over their tokens."""
    from diffbio_sc.engines import attributions as engine
    from diffbio_sc.engines.sequence_attributions import shuffle_dinucleotides

    model, maps = question.fitted.model, question.maps
    if method == "integrated_gradients":
        references = shuffle_dinucleotides(tokens, n_references, rng)
        found = engine.window_integrated_gradients(model, tokens, references, contacts=maps, steps=steps)
        return _of_cells(question, found)
    if method == "input_x_gradient":
        return _of_cells(question, engine.window_gradients(model, tokens, contacts=maps))
    result = np.empty((len(tokens), len(question.names), tokens.shape[1], 4), np.float32)
    if question.seen.any():
        result[:, question.seen] = _of_cells(question, engine.window_mutagenesis(model, tokens, contacts=maps))
    if not question.seen.all():
        assert question.context is not None
        result[:, ~question.seen] = engine.window_mutagenesis(
            model, tokens, tf_context=question.context.values, contacts=maps
        )
    return result


def _of_cells(question: Question, found: np.ndarray) -> np.ndarray:
    """Cell types asked for; a model without contexts has one prediction for all."""
    return found[:, np.zeros_like(question.columns) if found.shape[1] == 1 else question.columns]


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
    options: dict[str, Any] = {} if question.maps is None else {"contacts": question.maps}
    parts = [
        question.fitted.model.predict(tokens, tf_context=flat[first : first + _CONTEXTS], **options)
        for first in range(0, len(flat), _CONTEXTS)
    ]
    if question.fitted.kind == "windows":
        parts = [region_of_tokens(part) for part in parts]
    logits = np.concatenate(parts, axis=1).reshape(len(tokens), n_cells, n_factors + 1)
    return (logits[:, :, :1] - logits[:, :, 1:]).astype(np.float32)


def _predict(question: Question, tokens: np.ndarray) -> np.ndarray:
    """Log-odds of regions (sequences, cell types) in the order of the question."""
    result = np.empty((len(tokens), len(question.names)), np.float32)
    if question.seen.any():
        result[:, question.seen] = question.fitted.model.predict(tokens)[:, question.columns]
    if not question.seen.all():
        assert question.context is not None
        result[:, ~question.seen] = question.fitted.model.predict(tokens, tf_context=question.context.values)
    return result
