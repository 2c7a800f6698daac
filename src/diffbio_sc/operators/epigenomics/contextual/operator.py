"""The contextual sequence model as an operator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from diffbio_sc.operators.contract import FitReport, Operator, OperatorConfig, as_float_array
from diffbio_sc.operators.epigenomics.contextual.attention import AttentionBlock
from diffbio_sc.operators.epigenomics.contextual.config import ContextualEpigenomicsConfig
from diffbio_sc.operators.epigenomics.contextual.heads import ContactHead, ContextEncoder, Readout
from diffbio_sc.operators.epigenomics.contextual.inputs import (
    Inputs,
    read_contacts,
    read_inputs,
    read_targets,
    spread_start,
)
from diffbio_sc.operators.epigenomics.contextual.loss import Sums, contact_loss, label_loss, similarity_loss
from diffbio_sc.operators.epigenomics.contextual.stem import SequenceStem, reverse_complement

__all__ = ["ContextualEpigenomicsOperator", "compute_contextual_epigenomics_loss"]

_CONTACT_FLOOR = 0.01
"""Measured contacts enter attention as log((c + floor) / (1 - c + floor)), so that 0 and 1 are finite."""
_DATA_KEYS = ("sequence", "tf_context", "chromatin_contacts", "targets", "sequence_mask", "start_logits")


class Prediction(NamedTuple):
    """What the operator computes, with all axes.

    Attributes
    ----------
    logits
        Of labels, without those to start from.
    tokens
        Embeddings of tokens; 0 where masked.
    contact_logits
        Of contacts of tokens, or None without a contact head.
    """

    logits: Float[Array, "batch contexts tokens outputs"]
    tokens: Float[Array, "batch tokens features"]
    contact_logits: Float[Array, "batch tokens tokens"] | None


class ContextualEpigenomicsOperator(Operator):
    """Labels along sequences, in the context of transcription factors, with contacts as guide or input.

    Parameters
    ----------
    config
        Settings.
    rngs
        Random streams: ``params`` for initial parameters, ``dropout`` for what training leaves out.
    start
        Module that gives the logits to start from: called with sequences (batch, length, 4), it returns (batch, C) or
        (batch, positions, C), C being the number of contexts (times ``num_outputs``). The network, which adds nothing
        at first, learns what the start lacks. ``data["start_logits"]`` take its place where given.

    Notes
    -----
    Inputs of ``apply``, with a batch axis or without:

    - ``sequence`` (batch, length, 4): one-hot bases A, C, G, T; unknown bases (N) are all 0.
    - ``tf_context`` (batch, features), one context for each sequence; or (batch, contexts, features), several; or
      (1, contexts, features) or a list of vectors, which all sequences share. Needed with ``use_tf_context``.
    - ``sequence_mask`` (batch, length), optional: 0 for positions that do not exist. They change nothing.
    - ``chromatin_contacts`` (batch, positions, positions), from 0 to 1: needed with ``use_contact_input``; with
      ``use_chromatin_guidance`` needed for the loss.
    - ``start_logits``, optional: logits to start from, of the shape of ``logits`` or without its axis of positions.

    Outputs: ``logits`` (batch, positions), with a context axis before ``positions`` if there are several contexts, and
    with a last axis of classes if ``num_outputs`` is above 1; ``token_embeddings`` (batch, positions, hidden_dim) and
    their mean ``embeddings`` (batch, hidden_dim), both of the sequence alone, whatever the context;
    ``chromatin_guidance_loss``, the guidance term without its weight, 0 without guidance or contacts; and, with
    guidance of the form ``"contact_head"``, ``contact_logits`` (batch, positions, positions). A position is a token of
    ``token_width`` bases; a sequence that does not fill its last token is padded. Logits of masked positions are 0.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from diffbio_sc.operators.epigenomics import ContextualEpigenomicsConfig, ContextualEpigenomicsOperator
    >>> config = ContextualEpigenomicsConfig(num_tf_features=3, max_length=24)
    >>> operator = ContextualEpigenomicsOperator(config, rngs=nnx.Rngs(0))
    >>> data = {"sequence": jnp.eye(4)[jnp.arange(24) % 4], "tf_context": jnp.ones(3), "targets": jnp.arange(24) < 6}
    >>> operator.initialize(data)
    >>> result, _, _ = operator.apply(data, {}, None)
    >>> round(float(jax.nn.sigmoid(result["logits"][0])), 2)
    0.26
    """

    config_class: ClassVar[type[OperatorConfig]] = ContextualEpigenomicsConfig
    required_keys: ClassVar[tuple[str, ...]] = ("sequence",)
    optional_keys: ClassVar[tuple[str, ...]] = _DATA_KEYS[1:]
    is_network: ClassVar[bool] = True
    loss_takes_weights: ClassVar[bool] = True
    config: ContextualEpigenomicsConfig

    def __init__(self, config: ContextualEpigenomicsConfig, *, rngs: nnx.Rngs, start: nnx.Module | None = None):
        super().__init__(config, rngs=rngs)
        hidden, dropout = config.hidden_dim, config.dropout_rate
        longest = -(-config.max_length // config.token_width)
        guided = config.use_chromatin_guidance and config.guidance == "contact_head"
        self.deterministic = True
        self.strand_stream = rngs["dropout"].fork()
        self.stem = SequenceStem(config.stem_filters, config.stem_width, config.token_width, hidden, rngs=rngs)
        # Predicted contacts need a block before them, and bias those behind.
        self.blocks_before_contacts = (config.num_layers + 1) // 2
        self.blocks = nnx.List(
            [
                AttentionBlock(
                    hidden,
                    config.num_heads,
                    config.intermediate_dim,
                    config.attention_window,
                    dropout,
                    longest=longest,
                    takes_contacts=config.use_contact_input or (guided and number >= self.blocks_before_contacts),
                    rngs=rngs,
                )
                for number in range(config.num_layers)
            ]
        )
        self.norm = nnx.LayerNorm(hidden, rngs=rngs)
        self.contact_head = ContactHead(hidden, config.contact_dim, longest, rngs=rngs) if guided else None
        code = config.context_dim if config.use_tf_context else None
        self.context = None if code is None else ContextEncoder(config.num_tf_features, code, dropout, rngs=rngs)
        self.readout = Readout(hidden, config.readout_dim, config.num_outputs, code, dropout, rngs=rngs)
        self.start = start

    def initialize(self, data: Mapping[str, Any]) -> None:
        """Set the bias to the base rate of the targets, and standardise contexts, from labelled data.

        The operator then predicts the base rate everywhere (with a start: the start), and counts as fitted.

        Parameters
        ----------
        data
            Inputs and ``targets``, as for the loss.
        """
        inputs, form = read_inputs(self.config, data)
        batch, positions = inputs.tokens.shape
        targets = read_targets(data, form, batch, positions, self._contexts(inputs))
        if self.context is not None:
            assert inputs.context is not None
            rows = np.asarray(inputs.context, np.float64).reshape(-1, self.config.num_tf_features)
            spread = rows.std(0)
            self.context.shift[...] = jnp.asarray(rows.mean(0), jnp.float32)
            self.context.scale[...] = jnp.asarray(np.where(spread > 0, spread, 1.0), jnp.float32)
        counted = np.broadcast_to(np.asarray(inputs.tokens)[:, None], targets.shape)
        labels = np.asarray(targets)[counted]
        if self.start is None and inputs.start is None:
            self.readout.bias[...] = jnp.asarray(_base_logits(labels, self.config.num_outputs), jnp.float32)
        self.mark_fitted()

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return the outputs; see the notes of the class."""
        inputs, form = read_inputs(self.config, data)
        logits, prediction = self._predict(inputs)
        guidance = Sums(jnp.zeros(1), jnp.zeros(1))
        if self.config.use_chromatin_guidance and inputs.contacts is not None:
            guidance = self._guidance(prediction, inputs.contacts, inputs.tokens)
        number = inputs.tokens.sum(1, keepdims=True)
        embeddings = prediction.tokens.sum(1) / jnp.maximum(number, 1)
        outputs = {
            "logits": logits,
            "token_embeddings": prediction.tokens,
            "embeddings": embeddings,
        }
        if prediction.contact_logits is not None:
            outputs["contact_logits"] = prediction.contact_logits
        if self.config.num_outputs == 1:
            outputs["logits"] = outputs["logits"][..., 0]
        if not form.several_contexts:
            outputs["logits"] = outputs["logits"][:, 0]
        if not form.batched:
            outputs = {name: value[0] for name, value in outputs.items()}
        return {**outputs, "chromatin_guidance_loss": guidance.mean()}

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Return the total loss; see :func:`compute_contextual_epigenomics_loss`."""
        return self.loss_terms(data)["total"]

    def loss_terms(self, data: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        """Return ``supervised``, ``chromatin_guidance`` and ``total``."""
        inputs, form = read_inputs(self.config, data)
        batch, positions = inputs.tokens.shape
        targets = read_targets(data, form, batch, positions, self._contexts(inputs))
        if self.config.use_chromatin_guidance:
            read_contacts(data, batch, positions, form.batched, "use_chromatin_guidance")
        weight = None
        if data.get("sample_weight") is not None:
            weight = as_float_array(data, "sample_weight", (1,))
        logits, prediction = self._predict(inputs)
        supervised = label_loss(logits, targets, inputs.tokens).mean(weight)
        guidance = jnp.zeros(())
        if self.config.use_chromatin_guidance:
            assert inputs.contacts is not None
            guidance = self._guidance(prediction, inputs.contacts, inputs.tokens).mean(weight)
        total = supervised + self.config.chromatin_guidance_weight * guidance
        return {"supervised": supervised, "chromatin_guidance": guidance, "total": total}

    def fit(self, data: Mapping[str, Any], *arguments: Any, **options: Any) -> FitReport:
        """Lower ``loss`` by gradient descent on minibatches, from the base rate or the start.

        Parameters
        ----------
        data
            Inputs with a batch axis, and ``targets``; contexts that all sequences share have one row.
        arguments, options
            Further arguments of :func:`diffbio_sc.training.train`.

        Returns
        -------
        History, whether the stopping rule was met, epochs and seconds.
        """
        self.check_keys(data)
        if not bool(self.fitted[...]):
            self.initialize(data)
        known = {key: data[key] for key in (*_DATA_KEYS, "sample_weight") if data.get(key) is not None}
        if not self.config.use_tf_context:
            known.pop("tf_context", None)
        if not (self.config.use_chromatin_guidance or self.config.use_contact_input):
            known.pop("chromatin_contacts", None)
        if isinstance(known.get("tf_context"), list | tuple):
            known["tf_context"] = np.stack(known["tf_context"])[None]
        shape = np.shape(known.get("tf_context", ()))
        shared = {"tf_context"} if len(shape) == 3 and shape[0] == 1 else set()
        options.setdefault("sample_keys", [key for key in known if key not in shared])
        return super().fit(known, *arguments, **options)

    def encode(
        self,
        tokens: Float[Array, "batch tokens features"],
        mask: Bool[Array, "batch tokens"],
        contacts: Float[Array, "batch tokens tokens"] | None = None,
    ) -> tuple[Float[Array, "batch tokens features"], Float[Array, "batch tokens tokens"] | None]:
        """Let tokens of one strand exchange what they found.

        Parameters
        ----------
        tokens
            Tokens from the stem.
        mask
            Which exist.
        contacts
            Measured contacts, if they are an input.

        Returns
        -------
        Embeddings, 0 where masked, and logits of predicted contacts, or None without a contact head.
        """
        predicted, bias = None, None
        if self.config.use_contact_input:
            assert contacts is not None
            bias = jnp.log(contacts + _CONTACT_FLOOR) - jnp.log(1.0 - contacts + _CONTACT_FLOOR)
        for number, block in enumerate(self.blocks):
            if number == self.blocks_before_contacts:
                predicted = self._predict_contacts(tokens)
                bias = predicted if bias is None else bias
            tokens = block(tokens, mask, bias)
        if self.blocks_before_contacts == len(self.blocks):
            predicted = self._predict_contacts(tokens)
        return jnp.where(mask[..., None], self.norm(tokens), 0.0), predicted

    def read(
        self, tokens: Float[Array, "batch tokens features"], context: Float[Array, "#batch contexts features"] | None
    ) -> Float[Array, "batch contexts tokens outputs"]:
        """Logits of tokens in contexts, without those to start from."""
        return self.readout(tokens, None if self.context is None else self.context(context))

    def _warn_if_unfitted(self) -> None:
        # With a start the outputs mean something before any training.
        if self.start is None:
            super()._warn_if_unfitted()

    def _contexts(self, inputs: Inputs) -> int:
        return 1 if inputs.context is None else inputs.context.shape[1]

    def _predict_contacts(self, tokens: Array) -> Array | None:
        return None if self.contact_head is None else self.contact_head(tokens)

    def _predict(self, inputs: Inputs) -> tuple[Array, Prediction]:
        """Logits with those to start from, and the rest."""
        if self.deterministic:
            # Compiled as one also while gradients are taken from outside: one operation after the other takes longer.
            return _compiled(ContextualEpigenomicsOperator._predict_strands, *nnx.split(self), inputs)
        return self._predict_strands(inputs)

    def _predict_strands(self, inputs: Inputs) -> tuple[Array, Prediction]:
        batch = len(inputs.sequence)
        if not self.deterministic:
            turned = jax.random.bernoulli(self.strand_stream(), 0.5, (batch,))
            prediction = _turn_tokens(self._predict_one(_turn_inputs(inputs, turned)), turned)
        elif self.config.average_strands:
            both = jax.tree.map(lambda array: jnp.concatenate([array, array]) if len(array) == batch else array, inputs)
            turned = np.arange(2 * batch) >= batch
            both = _turn_tokens(self._predict_one(_turn_inputs(both, turned)), turned)
            prediction = jax.tree.map(lambda array: (array[:batch] + array[batch:]) / 2.0, both)
        else:
            prediction = self._predict_one(inputs)
        start = inputs.start if inputs.start is not None else self._start_logits(inputs.sequence, prediction.logits)
        logits = prediction.logits if start is None else prediction.logits + start
        return jnp.where(inputs.tokens[:, None, :, None], logits, 0.0), prediction

    def _start_logits(self, sequence: Array, logits: Array) -> Array | None:
        if self.start is None:
            return None
        _, contexts, positions, outputs = logits.shape
        start = spread_start(self.start(sequence), contexts, outputs, positions)
        if self.deterministic and self.config.average_strands:
            other = spread_start(self.start(reverse_complement(sequence)), contexts, outputs, positions)
            start = (start + other[:, :, ::-1]) / 2.0
        return start

    def _predict_one(self, inputs: Inputs) -> Prediction:
        tokens, contact_logits = self.encode(
            self.stem(inputs.sequence, inputs.mask),
            inputs.tokens,
            inputs.contacts if self.config.use_contact_input else None,
        )
        return Prediction(self.read(tokens, inputs.context), tokens, contact_logits)

    def _guidance(self, prediction: Prediction, contacts: Array, mask: Array) -> Sums:
        if self.config.guidance == "embedding_similarity":
            return similarity_loss(prediction.tokens, contacts, mask)
        assert prediction.contact_logits is not None
        return contact_loss(prediction.contact_logits, contacts, mask)


def compute_contextual_epigenomics_loss(
    operator: ContextualEpigenomicsOperator, data: Mapping[str, Any]
) -> dict[str, Float[Array, ""]]:
    """Loss of the operator on labelled sequences, by term.

    Parameters
    ----------
    operator
        Operator.
    data
        Its inputs and ``targets`` (batch, positions), or (batch, contexts, positions); with guidance also
        ``chromatin_contacts``. ``sequence_mask`` and ``sample_weight`` (batch,) apply to all terms.

    Returns
    -------
    ``supervised``: mean cross-entropy per position in nats, of a yes-or-no label if ``config.num_outputs`` is 1, of
    classes otherwise; ``chromatin_guidance``: mean guidance term per pair of positions, 0 without guidance; ``total``:
    the first plus ``config.chromatin_guidance_weight`` times the second.

    Raises
    ------
    KeyError
        If targets or, with guidance, contacts are missing.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from diffbio_sc.operators import epigenomics
    >>> config = epigenomics.ContextualEpigenomicsConfig(num_tf_features=3, max_length=24)
    >>> operator = epigenomics.ContextualEpigenomicsOperator(config, rngs=nnx.Rngs(0))
    >>> data = {"sequence": jnp.eye(4)[jnp.arange(24) % 4], "tf_context": jnp.ones(3), "targets": jnp.arange(24) < 12}
    >>> operator.initialize(data)
    >>> terms = epigenomics.compute_contextual_epigenomics_loss(operator, data)
    >>> round(float(terms["supervised"]), 2)  # of a base rate of one half
    0.69
    """
    return operator.loss_terms(data)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(method, graph, state, inputs):
    return method(nnx.merge(graph, state), inputs)


def _turn_inputs(inputs: Inputs, turned: Bool[Array, " batch"]) -> Inputs:
    """Read the other strand of some sequences."""

    def choose(values, other):
        return jnp.where(turned.reshape(-1, *(1,) * (values.ndim - 1)), other, values)

    contacts = inputs.contacts
    return inputs._replace(
        sequence=choose(inputs.sequence, reverse_complement(inputs.sequence)),
        mask=choose(inputs.mask, inputs.mask[:, ::-1]),
        tokens=choose(inputs.tokens, inputs.tokens[:, ::-1]),
        contacts=None if contacts is None else choose(contacts, contacts[:, ::-1, ::-1]),
    )


def _turn_tokens(prediction: Prediction, turned: Bool[Array, " batch"]) -> Prediction:
    """Put the tokens of turned sequences in the order of the sequence."""

    def choose(values, other):
        return jnp.where(turned.reshape(-1, *(1,) * (values.ndim - 1)), other, values)

    contacts = prediction.contact_logits
    return Prediction(
        choose(prediction.logits, prediction.logits[:, :, ::-1]),
        choose(prediction.tokens, prediction.tokens[:, ::-1]),
        None if contacts is None else choose(contacts, contacts[:, ::-1, ::-1]),
    )


def _base_logits(labels: np.ndarray, outputs: int) -> np.ndarray:
    """Log-odds of the label, or log-probabilities of classes, each with half a count more."""
    if outputs == 1:
        ones = labels.sum(dtype=np.float64)
        return np.log([(ones + 0.5) / (len(labels) - ones + 0.5)])
    counts = np.bincount(labels.astype(np.int64), minlength=outputs)[:outputs] + 0.5
    return np.log(counts / counts.sum())
