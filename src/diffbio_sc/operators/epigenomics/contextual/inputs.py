"""Arrays as the operator reads them, whatever of the allowed forms they come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from diffbio_sc.operators.contract import as_float_array, check_axis_size
from diffbio_sc.operators.epigenomics.contextual.config import ContextualEpigenomicsConfig
from diffbio_sc.operators.epigenomics.contextual.stem import token_mask


class Inputs(NamedTuple):
    """Inputs with a batch axis, the sequence padded to whole tokens. Where a form has several, 'one' means length 1.

    Attributes
    ----------
    sequence
        Bases; masked ones are 0.
    mask, tokens
        Which bases and tokens exist.
    context
        Contexts (batch or one, contexts, features), or None without.
    contacts
        Contacts of tokens, or None.
    start
        Logits to start from (batch, contexts, tokens or one, outputs), or None.
    """

    sequence: Float[Array, "batch length 4"]
    mask: Bool[Array, "batch length"]
    tokens: Bool[Array, "batch tokens"]
    context: Float[Array, "#batch contexts features"] | None
    contacts: Float[Array, "batch tokens tokens"] | None
    start: Float[Array, "batch contexts #tokens outputs"] | None


class Form(NamedTuple):
    """Form that outputs have: with batch axis, with context axis."""

    batched: bool
    several_contexts: bool


def read_inputs(config: ContextualEpigenomicsConfig, data: Mapping[str, Any]) -> tuple[Inputs, Form]:
    """Check shapes and bring arrays into one form.

    Raises
    ------
    KeyError
        If an input that the configuration asks for is missing.
    ValueError
        If a shape does not fit.
    """
    sequence = as_float_array(data, "sequence", (2, 3))
    check_axis_size("sequence", sequence, -1, 4, "A C G T")
    batched = sequence.ndim == 3
    sequence = sequence if batched else sequence[None]
    batch, length = sequence.shape[:2]
    if length == 0 or length > config.max_length:
        raise ValueError(
            f"data['sequence'] must have 1 to {config.max_length} bases (config.max_length), found {length}."
        )
    mask = jnp.ones((batch, length), bool)
    if data.get("sequence_mask") is not None:
        mask = _batched(data, "sequence_mask", 1, batched) > 0
        _check_shape("sequence_mask", mask, (batch, length), "one value for each base")
    behind = -length % config.token_width
    mask = jnp.pad(mask, ((0, 0), (0, behind)))
    sequence = jnp.where(mask[..., None], jnp.pad(sequence, ((0, 0), (0, behind), (0, 0))), 0.0)
    context, several = None, False
    if config.use_tf_context:
        context, several = _read_context(config, data, batch, batched)
    positions = mask.shape[1] // config.token_width
    contacts = None
    needed = "use_contact_input" if config.use_contact_input else None
    if config.use_chromatin_guidance or config.use_contact_input:
        contacts = read_contacts(data, batch, positions, batched, needed)
    tokens = token_mask(mask, config.token_width)
    if contacts is not None:
        contacts = jnp.where(tokens[:, :, None] & tokens[:, None, :], contacts, 0.0)
    start = None
    if data.get("start_logits") is not None:
        contexts = 1 if context is None else context.shape[1]
        start = _read_start(config, data, (batch, contexts, positions), batched, several)
    return Inputs(sequence, mask, tokens, context, contacts, start), Form(batched, several)


def _read_context(
    config: ContextualEpigenomicsConfig, data: Mapping[str, Any], batch: int, batched: bool
) -> tuple[Array, bool]:
    given = data.get("tf_context")
    if given is None:
        raise KeyError("config.use_tf_context needs data['tf_context'].")
    if isinstance(given, list | tuple):
        listed = jnp.stack([as_float_array({"tf_context": one}, "tf_context", (1,)) for one in given])
        context, several = listed[None], True
    else:
        context = as_float_array(data, "tf_context", (2, 3) if batched else (1, 2))
        several = context.ndim == (3 if batched else 2)
        context = context if batched else context[None]
        context = context if several else context[:, None]
    check_axis_size("tf_context", context, -1, config.num_tf_features, "config.num_tf_features")
    if context.shape[0] not in (1, batch):
        raise ValueError(
            f"data['tf_context'] must have {batch} rows as data['sequence'] has, or 1 for all, found {context.shape}."
        )
    if context.shape[1] == 0:
        raise ValueError("data['tf_context'] must hold at least one context.")
    if context.shape[0] != batch and not several:
        raise ValueError(f"data['tf_context'] must have {batch} rows as data['sequence'] has, found 1.")
    return context, several


def read_contacts(
    data: Mapping[str, Any], batch: int, positions: int, batched: bool, needed: str | None
) -> Array | None:
    """Contacts of tokens; None if there are none and ``needed``, what needs them, is None."""
    if data.get("chromatin_contacts") is None:
        if needed is not None:
            raise KeyError(f"config.{needed} needs data['chromatin_contacts'].")
        return None
    contacts = _batched(data, "chromatin_contacts", 2, batched)
    _check_shape("chromatin_contacts", contacts, (batch, positions, positions), "one value for each pair of positions")
    return contacts


def read_targets(data: Mapping[str, Any], form: Form, batch: int, positions: int, contexts: int) -> Array:
    """Targets (batch, contexts, tokens)."""
    if data.get("targets") is None:
        raise KeyError("the loss needs data['targets'].")
    plain = 2 if form.batched else 1
    targets = as_float_array(data, "targets", (plain, plain + 1))
    several = targets.ndim == plain + 1
    targets = targets if form.batched else targets[None]
    targets = targets if several else targets[:, None]
    # A model without contexts predicts the same in all of them.
    expected = (batch, targets.shape[1] if contexts == 1 and not form.several_contexts else contexts, positions)
    _check_shape("targets", targets, expected, "examples, contexts if there are several, positions")
    return targets


def _read_start(
    config: ContextualEpigenomicsConfig,
    data: Mapping[str, Any],
    sizes: tuple[int, int, int],
    batched: bool,
    several: bool,
) -> Array:
    batch, contexts, positions = sizes
    full = (*((batch,) if batched else ()), *((contexts,) if several else ()), positions)
    full = (*full, *((config.num_outputs,) if config.num_outputs > 1 else ()))
    at = len(full) - 1 - (config.num_outputs > 1)
    start = as_float_array(data, "start_logits", range(5))
    if start.shape == full[:at] + full[at + 1 :]:
        start, last = jnp.expand_dims(start, at), 1
    elif start.shape == full:
        last = positions
    else:
        raise ValueError(
            f"data['start_logits'] must have the shape of the logits, {full}, or that without positions, "
            f"found {start.shape}."
        )
    return start.reshape(batch, contexts, last, config.num_outputs)


def spread_start(
    start: Float[Array, "batch ..."], contexts: int, outputs: int, positions: int
) -> Float[Array, "batch contexts #tokens outputs"]:
    """Bring what a start module returns, (batch, columns) or (batch, tokens, columns), into the form of logits."""
    columns = contexts * outputs
    if start.ndim not in (2, 3) or start.shape[-1] != columns or (start.ndim == 3 and start.shape[1] != positions):
        raise ValueError(
            f"the start must return logits of the shape (batch, {columns}) or (batch, {positions}, {columns}): columns "
            f"are the contexts, each with {outputs} outputs; found {start.shape}."
        )
    start = start[:, None] if start.ndim == 2 else start
    return start.reshape(*start.shape[:2], contexts, outputs).transpose(0, 2, 1, 3)


def _batched(data: Mapping[str, Any], key: str, axes: int, batched: bool) -> Array:
    array = as_float_array(data, key, (axes + int(batched),))
    return array if batched else array[None]


def _check_shape(key: str, array: Array, expected: tuple[int, ...], meaning: str) -> None:
    if array.shape != expected:
        raise ValueError(f"data[{key!r}] must have the shape {expected} ({meaning}), found {array.shape}.")
