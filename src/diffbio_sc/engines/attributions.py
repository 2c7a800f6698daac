"""What bases and transcription factors add to the predictions of a window model.

A prediction that is explained is the log-odds of one position of each window, or of any position, log(sum(exp)) over
all of them. Scores of bases are hypothetical contributions (windows, contexts, bases, 4), as
:mod:`diffbio_sc.engines.sequence_attributions` has them, whose gradients and references these functions use.

In-silico mutagenesis reads a window once: a substitution changes the matches of filters within half a filter's width,
by a difference of two entries of the filter, so that only the tokens it touches are pooled and embedded again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from diffbio_sc._compiled import one_thread_at_a_time
from diffbio_sc.engines import sequence_attributions
from diffbio_sc.genome.sequences import check_tokens, one_hot

if TYPE_CHECKING:
    from diffbio_sc.engines.contextual_windows import WindowModel

__all__ = ["factor_contributions", "window_gradients", "window_integrated_gradients", "window_mutagenesis"]


@one_thread_at_a_time
def window_mutagenesis(
    model: WindowModel,
    tokens: Int[np.ndarray, "windows length"],
    *,
    position: Int[np.ndarray, " windows"] | None = None,
    tf_context: Float[np.ndarray, "contexts features"] | None = None,
    contacts: Float[np.ndarray, "windows positions positions"] | None = None,
    first: Int[np.ndarray, " windows"] | None = None,
    width: int | None = None,
) -> Float[np.ndarray, "windows contexts width 4"]:
    """Substitute every base by every letter: log-odds with a letter, less the mean over the four letters.

    Parameters
    ----------
    model
        Model.
    tokens
        Windows.
    position
        Position of each window whose prediction is explained; default any.
    tf_context
        Contexts; default those that were trained on.
    contacts
        Measured contacts, of a model that takes them.
    first, width
        First base of each window to substitute, and number of bases; default all.
    """
    tokens, explained = _explained(model, tokens, position)
    number, length = tokens.shape
    width = length if width is None else int(width)
    first = np.zeros(number, np.int64) if first is None else np.asarray(first, np.int64)
    if first.min() < 0 or (first + width).max() > length:
        raise ValueError(f"first and width must lie within the windows of {length} bases.")
    contexts, maps = _conditions(model, tf_context, contacts)
    graph, state = nnx.split(model.operator)
    place, letter = (part.ravel() for part in np.mgrid[:width, :4])
    result = []
    for row in range(number):
        found = _mutants(
            graph,
            state,
            one_hot(tokens[row]),
            first[row] + place,
            letter,
            contexts,
            None if maps is None else maps[row],
            explained[row],
        )
        result.append(np.asarray(found).reshape(width, 4, -1).transpose(2, 0, 1))
    scores = np.stack(result)
    return np.ascontiguousarray(scores - scores.mean(3, keepdims=True), np.float32)


def window_gradients(
    model: WindowModel,
    tokens: Int[np.ndarray, "windows length"],
    *,
    position: Int[np.ndarray, " windows"] | None = None,
    tf_context: Float[np.ndarray, "contexts features"] | None = None,
    contacts: Float[np.ndarray, "windows positions positions"] | None = None,
) -> Float[np.ndarray, "windows contexts length 4"]:
    """Gradient by each letter, less its mean over the four. Parameters as of :func:`window_mutagenesis`."""
    logits, extra = _relaxed(model, tokens, position, tf_context, contacts)
    return sequence_attributions.gradients(logits, check_tokens(tokens), *extra)


def window_integrated_gradients(
    model: WindowModel,
    tokens: Int[np.ndarray, "windows length"],
    references: Int[np.ndarray, "windows references length"],
    *,
    position: Int[np.ndarray, " windows"] | None = None,
    tf_context: Float[np.ndarray, "contexts features"] | None = None,
    contacts: Float[np.ndarray, "windows positions positions"] | None = None,
    steps: int = 20,
) -> Float[np.ndarray, "windows contexts length 4"]:
    """Gradients along lines from reference sequences. Further parameters as of :func:`window_mutagenesis`."""
    logits, extra = _relaxed(model, tokens, position, tf_context, contacts)
    return sequence_attributions.integrated_gradients(logits, check_tokens(tokens), references, *extra, steps=steps)


@one_thread_at_a_time
def factor_contributions(
    model: WindowModel,
    tokens: Int[np.ndarray, "windows length"],
    tf_context: Float[np.ndarray, "contexts features"],
    *,
    position: Int[np.ndarray, " windows"] | None = None,
    contacts: Float[np.ndarray, "windows positions positions"] | None = None,
) -> Float[np.ndarray, "windows contexts features"]:
    """Gradient by the expression of each factor, times its difference from the mean of the contexts trained on.

    Parameters as of :func:`window_mutagenesis`. Factors whose expression rises and falls together share what they
    contribute: with few cell types it cannot tell them apart.
    """
    tokens, explained = _explained(model, tokens, position)
    context_map = model.context_map
    if context_map is None:
        raise ValueError("this model was trained without contexts: no factor contributes to it.")
    model.reduce(tf_context)  # checks its shape
    _, maps = _conditions(model, tf_context, contacts)
    graph, state = nnx.split(model.operator)
    given, shift = np.asarray(tf_context, np.float32), context_map.shift.astype(np.float32)
    found = [
        np.asarray(
            _factor_gradient(
                graph,
                state,
                one_hot(tokens[row])[None],
                given,
                shift,
                context_map.components.astype(np.float32),
                None if maps is None else maps[row][None],
                explained[row],
            )
        )
        for row in range(len(tokens))
    ]
    return np.stack(found) * (given - shift)


def _explained(
    model: WindowModel, tokens: Any, position: np.ndarray | None
) -> tuple[np.ndarray, Float[np.ndarray, "windows positions"]]:
    """Tokens, and what is added to the log-odds of each position before log(sum(exp)): 0, or -inf to leave it out."""
    tokens = check_tokens(tokens)
    positions = -(-tokens.shape[1] // model.operator.config.token_width)
    if model.operator.config.num_outputs != 1:
        raise ValueError("attributions explain yes-or-no labels, not classes.")
    if position is None:
        return tokens, np.zeros((len(tokens), positions), np.float32)
    position = np.asarray(position)
    if position.shape != (len(tokens),) or position.min() < 0 or position.max() >= positions:
        raise ValueError(f"position must name one of {positions} positions for each of {len(tokens)} windows.")
    return tokens, np.where(position[:, None] == np.arange(positions), 0.0, -np.inf).astype(np.float32)


def _conditions(model: WindowModel, tf_context: Any, contacts: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    config = model.operator.config
    contexts = None
    if config.use_tf_context:
        contexts = (model.contexts if tf_context is None else model.reduce(tf_context))[None]  # type: ignore[index]
    if config.use_contact_input and contacts is None:
        raise ValueError("this model takes contacts as an input: pass contacts.")
    return contexts, np.asarray(contacts, np.float32) if config.use_contact_input else None


def _relaxed(
    model: WindowModel, tokens: Any, position: Any, tf_context: Any, contacts: Any
) -> tuple[Callable[..., Array], list[np.ndarray]]:
    """Log-odds of relaxed sequences as a function of them and of some arrays with a row for each."""
    _, explained = _explained(model, tokens, position)
    contexts, maps = _conditions(model, tf_context, contacts)
    graph, state = nnx.split(model.operator)

    def logits(sequence: Array, explained: Array, *maps: Array) -> Array:
        data = {"sequence": sequence}
        if contexts is not None:
            data["tf_context"] = jnp.asarray(contexts)
        if maps:
            data["chromatin_contacts"] = maps[0]
        found = nnx.merge(graph, state)(data)["logits"]
        found = found if found.ndim == 3 else found[:, None]
        return jax.nn.logsumexp(found + explained[:, None], axis=-1)

    return logits, [explained] if maps is None else [explained, maps]


@partial(jax.jit, static_argnums=0)
def _factor_gradient(graph, state, sequence, given, shift, components, maps, explained):
    operator = nnx.merge(graph, state)

    def total(given):
        # Not clipped: beyond the limit a factor contributes as it does at the limit.
        data = {"sequence": sequence, "tf_context": ((given - shift) @ components)[None]}
        if maps is not None:
            data["chromatin_contacts"] = maps
        return jax.nn.logsumexp(operator(data)["logits"][0] + explained, axis=-1).sum()

    return jax.grad(total)(given)


@partial(jax.jit, static_argnums=0)
def _mutants(graph, state, sequence, place, letter, contexts, contacts, explained):
    """Explained log-odds of one window with a letter at a place, for many of them (mutants, contexts)."""
    operator = nnx.merge(graph, state)
    stem, width = operator.stem, operator.config.token_width
    behind = -len(sequence) % width
    mask = jnp.arange(len(sequence) + behind) < len(sequence)
    sequence = jnp.pad(sequence, ((0, behind), (0, 0)))
    scores = stem.base_scores(sequence[None], mask[None])[0]
    length, channels = scores.shape
    kernel = stem.both_strands()
    half = len(kernel) // 2
    # Tokens that a substitution can touch: those under the filters that reach its base.
    touched = min(2 * half // width + 2, length // width)
    matches = scores.reshape(-1, width, channels).max(1)

    def changed(place, letter):
        token = jnp.clip((place - half) // width, 0, length // width - touched)
        around = jax.lax.dynamic_slice(scores, (token * width, 0), (touched * width, channels))
        entry = place - (token * width + jnp.arange(touched * width)) + half
        row = kernel[jnp.clip(entry, 0, len(kernel) - 1)]
        difference = row[:, letter] - jnp.einsum("qcf,c->qf", row, sequence[place])
        inside = (entry >= 0) & (entry < len(kernel))
        around = around + jnp.where(inside[:, None], difference, 0.0)
        new = around.reshape(touched, width, channels).max(1)
        return jax.lax.dynamic_update_slice(matches, new, (token, 0))

    mutants = jax.vmap(changed)(place, letter)
    present = mask.reshape(-1, width).any(1)

    def explain(found, turned):
        number = len(found)
        bias = contacts
        if turned:
            forward, backward = jnp.split(found, 2, axis=-1)
            found = jnp.concatenate([backward, forward], -1)[:, ::-1]
            bias = None if contacts is None else contacts[::-1, ::-1]
        seen = present[::-1] if turned else present
        bias = None if bias is None else jnp.broadcast_to(bias, (number, *bias.shape))
        embedded, _ = operator.encode(stem.embed(found), jnp.broadcast_to(seen, (number, len(seen))), bias)
        logits = operator.read(embedded, None if contexts is None else jnp.asarray(contexts))[..., 0]
        return logits[..., ::-1] if turned else logits

    def chunk(found):
        logits = explain(found, False)
        if operator.config.average_strands:
            logits = (logits + explain(found, True)) / 2.0
        logits = jnp.where(present, logits, 0.0)
        return jax.nn.logsumexp(logits + explained, axis=-1)

    size = min(512, len(mutants))
    filled = jnp.pad(mutants, ((0, -len(mutants) % size), (0, 0), (0, 0)))
    parts = jax.lax.map(chunk, filled.reshape(-1, size, *mutants.shape[1:]))
    return parts.reshape(len(filled), -1)[: len(mutants)]
