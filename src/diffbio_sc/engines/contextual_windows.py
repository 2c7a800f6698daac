"""Training and prediction of the contextual sequence model over many windows with labels along each window.

Windows are kept as int8 bases and made one-hot inside the compiled step. The contexts of all cell types are shared by
all windows, so that a window is read once whatever their number.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffbio_sc._checks import whole_number
from diffbio_sc._compiled import one_thread_at_a_time
from diffbio_sc.genome.sequences import check_tokens

if TYPE_CHECKING:
    from diffbio_sc.operators.epigenomics import ContextualEpigenomicsConfig, ContextualEpigenomicsOperator

__all__ = ["ContextMap", "WindowModel", "fit_windows"]

_MOST_COMPONENTS = 16
_FARTHEST = 4.0
"""Components of a context are clipped there: a new cell type must not lie far outside all that was seen."""
_PREDICTION_BATCH = 64


class ContextMap(NamedTuple):
    """Principal components of the contexts that were trained on, each of variance 1.

    Few cell types make few components: more than their number minus one could only tell the cell types apart.

    Attributes
    ----------
    shift, components
        What is subtracted from a context, and what it is then multiplied by.
    """

    shift: Float[np.ndarray, " features"]
    components: Float[np.ndarray, "features components"]

    @classmethod
    def of(cls, contexts: Float[np.ndarray, "contexts features"], most: int = _MOST_COMPONENTS) -> Self:
        """Find the components of contexts, features scaled to variance 1 first; constant features count nothing."""
        values = np.asarray(contexts, np.float64)
        shift, spread = values.mean(0), values.std(0)
        scale = np.where(spread > 0, 1.0 / np.where(spread > 0, spread, 1.0), 0.0)
        _, sizes, axes = np.linalg.svd((values - shift) * scale, full_matrices=False)
        number = max(1, min(most, len(values) - 1, int((sizes > 1e-6 * max(sizes[0], 1e-30)).sum())))
        weights = np.sqrt(len(values)) / np.maximum(sizes[:number], 1e-30) * (sizes[:number] > 0)
        return cls(shift, scale[:, None] * axes[:number].T * weights)

    def __call__(self, contexts: Float[np.ndarray, "contexts features"]) -> Float[np.ndarray, "contexts components"]:
        """Return components of contexts."""
        found = (np.asarray(contexts, np.float64) - self.shift) @ self.components
        return np.clip(found, -_FARTHEST, _FARTHEST).astype(np.float32)


@dataclasses.dataclass
class WindowModel:
    """A contextual sequence model trained on windows.

    Attributes
    ----------
    operator
        The trained operator; its contexts are components of ``context_map``.
    context_map
        How contexts are reduced, or None without contexts.
    contexts
        Reduced contexts of the cell types that were trained on, or None.
    n_contexts
        Number of cell types of the labels.
    report
        What was done, in types that h5ad and zarr store.
    """

    operator: ContextualEpigenomicsOperator
    context_map: ContextMap | None
    contexts: Float[np.ndarray, "contexts components"] | None
    n_contexts: int
    report: dict[str, Any]

    def predict(
        self,
        tokens: Int[np.ndarray, "windows length"],
        *,
        tf_context: Float[np.ndarray, "contexts features"] | None = None,
        contacts: Float[np.ndarray, "windows positions positions"] | None = None,
        start_logits: Float[np.ndarray, "windows contexts positions"] | None = None,
    ) -> Float[np.ndarray, "windows contexts positions"]:
        """Return logits of labels along windows.

        Parameters
        ----------
        tokens
            Bases, A C G T as 0 to 3, anything else 4.
        tf_context
            Contexts to predict in; default those that were trained on.
        contacts
            Measured contacts, if the model takes them.
        start_logits
            Logits that the network adds to, as in training.
        """
        return self._run(tokens, tf_context, contacts, start_logits)[0]

    def predict_contacts(
        self, tokens: Int[np.ndarray, "windows length"]
    ) -> Float[np.ndarray, "windows positions positions"]:
        """Return logits of contacts, of a model that contacts guided; otherwise cosines of embeddings."""
        return self._run(tokens, None, None, None)[1]

    @one_thread_at_a_time
    def _run(
        self,
        tokens: np.ndarray,
        tf_context: np.ndarray | None,
        contacts: np.ndarray | None,
        start_logits: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens, config, contexts = check_tokens(tokens), self.operator.config, self.contexts
        if config.use_tf_context and tf_context is not None:
            contexts = self.reduce(tf_context)
        if config.use_contact_input and contacts is None:
            raise ValueError("this model takes contacts as an input: pass contacts.")
        logits, pairs = [], []
        for first in range(0, len(tokens), _PREDICTION_BATCH):
            rows = np.arange(first, first + _PREDICTION_BATCH) % len(tokens)  # one shape, so that one program serves
            batch: dict[str, Any] = {"tokens": tokens[rows]}
            if config.use_tf_context:
                batch["tf_context"] = contexts[None]  # type: ignore[index]
            if config.use_contact_input:
                batch["chromatin_contacts"] = np.asarray(contacts)[rows]
            if start_logits is not None:
                batch["start_logits"] = np.asarray(start_logits)[rows]
            found = self.operator(as_operator_input(batch))
            kept = min(_PREDICTION_BATCH, len(tokens) - first)
            logits.append(np.asarray(found["logits"])[:kept])
            pairs.append(_pair_scores(found)[:kept])
        joined = np.concatenate(logits)
        if joined.ndim == 2:  # a model without contexts predicts the same in all of them
            joined = np.repeat(joined[:, None], self.n_contexts, axis=1)
        return joined, np.concatenate(pairs)

    def reduce(self, tf_context: Float[np.ndarray, "contexts features"]) -> Float[np.ndarray, "contexts components"]:
        """Return contexts as the operator takes them."""
        if self.context_map is None:
            raise ValueError("this model was trained without contexts.")
        given, expected = np.shape(tf_context), len(self.context_map.shift)
        if len(given) != 2 or given[1] != expected:
            raise ValueError(f"tf_context must have the shape (contexts, {expected}), found {given}.")
        return self.context_map(tf_context)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all that rebuilds the model, as arrays by name."""
        from diffbio_sc.training import storage

        arrays, kinds = {}, {}
        for path, value in storage.variables(self.operator).items():
            arrays[f"operator/{path}"], kinds[path] = storage.to_host(value)
        header = {
            "config": self.operator.config.to_dict(),
            "kinds": kinds,
            "n_contexts": self.n_contexts,
            "report": self.report,
        }
        arrays["header"] = np.frombuffer(json.dumps(header, default=lambda value: value.tolist()).encode(), np.uint8)
        if self.context_map is not None and self.contexts is not None:
            arrays |= {**self.context_map._asdict(), "contexts": self.contexts}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuild a model from what :meth:`arrays` returned."""
        from flax import nnx

        from diffbio_sc.operators.epigenomics import ContextualEpigenomicsConfig, ContextualEpigenomicsOperator
        from diffbio_sc.training import storage

        header = json.loads(np.asarray(arrays["header"], np.uint8).tobytes())
        operator = ContextualEpigenomicsOperator(
            ContextualEpigenomicsConfig.from_dict(header["config"]), rngs=nnx.Rngs(0)
        )
        where = "the stored model"
        values = {
            path: storage.to_device(np.asarray(arrays[f"operator/{path}"]), kind, where=where)
            for path, kind in header["kinds"].items()
        }
        nnx.update(operator, storage.restore(nnx.state(operator), values, where=where))
        context_map = contexts = None
        if "contexts" in arrays:
            context_map = ContextMap(np.asarray(arrays["shift"]), np.asarray(arrays["components"]))
            contexts = np.asarray(arrays["contexts"])
        report = header["report"]
        report["history"] = {name: np.asarray(curve) for name, curve in report["history"].items()}
        return cls(operator, context_map, contexts, header["n_contexts"], report)


@one_thread_at_a_time
def fit_windows(
    tokens: Int[np.ndarray, "windows length"],
    targets: Float[np.ndarray, "windows contexts positions"],
    config: ContextualEpigenomicsConfig,
    *,
    tf_context: Float[np.ndarray, "contexts features"] | None = None,
    contacts: Float[np.ndarray, "windows positions positions"] | None = None,
    start_logits: Float[np.ndarray, "windows contexts positions"] | None = None,
    validation: float | Int[np.ndarray, " windows"] = 0.1,
    max_epochs: int = 12,
    patience: int | None = None,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    average: float | None = 0.99,
    filter_rate: float = 0.1,
    motifs: Sequence[Float[np.ndarray, "width 4"]] | None = None,
    rng: int = 0,
) -> WindowModel:
    """Train the contextual sequence model on windows with labels along each window.

    Training starts from the base rate, or from ``start_logits``, and returns to it unless held-out windows are
    predicted better.

    Parameters
    ----------
    tokens
        Bases of the windows, A C G T as 0 to 3, anything else 4.
    targets
        Labels, 0 or 1, of each context (cell type) and position.
    config
        Settings of the operator: what it uses, and sizes. ``num_tf_features`` is set to the number of components.
    tf_context
        Expression of transcription factors in each context; needed with ``use_tf_context``.
    contacts
        Contacts of positions, from 0 to 1; needed with ``use_chromatin_guidance`` and ``use_contact_input``.
    start_logits
        Logits for the network to add to, of windows that the model behind them has not seen.
    validation
        Share of windows to hold out, or those to hold out.
    max_epochs
        Largest number of passes over the windows.
    patience
        Epochs without a better prediction of held-out windows after which to stop. Default: never; the best epoch is
        kept in any case.
    batch_size
        Windows in a step.
    learning_rate
        Highest learning rate: it rises for a tenth of the run and then falls as a cosine.
    average
        Decay of the running average of the parameters, which is what predicts. None takes the parameters themselves.
    filter_rate
        What the learning rate is multiplied by for the filters, which begin as motifs.
    motifs
        Log-odds of motifs that the first filters start from. Default: those that are enriched at labels of training
        windows and, where contacts are used, at the ends of the strongest ones.
    rng
        Seed of initial parameters and order.

    Returns
    -------
    The model; its report tells the losses of all epochs and whether the start was kept.
    """
    import optax

    from diffbio_sc.numerics.random_keys import streams
    from diffbio_sc.operators.epigenomics import ContextualEpigenomicsOperator
    from diffbio_sc.training import Adam, train

    tokens, max_epochs = check_tokens(tokens), whole_number(max_epochs, "max_epochs")
    batch_size = whole_number(batch_size, "batch_size")
    data, context_map = _training_data(tokens, targets, config, tf_context, contacts, start_logits)
    contexts = None
    if context_map is not None:
        contexts = data["tf_context"][0]
        config = dataclasses.replace(config, num_tf_features=contexts.shape[1])
    operator = ContextualEpigenomicsOperator(config, rngs=streams(rng))
    _set_base_rate(operator, data)
    held_out = _held_out(validation, len(tokens), rng)
    learned = np.setdiff1d(np.arange(len(tokens)), held_out)
    if motifs is None:
        maps = _rows(data, "chromatin_contacts", learned)
        motifs = find_motifs(config, tokens[learned], data["targets"][learned], maps)
    operator.stem.set_filters(motifs)
    steps = -(-len(learned) // batch_size) * max_epochs
    rise = max(1, steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, rise, max(steps, rise + 1))
    report = train(
        operator,
        data,
        loss=_window_loss,
        weighted=True,
        sample_keys=[key for key in data if key != "tf_context"],
        optimizer=Adam(schedule, factors=(("stem/kernel", filter_rate),), clip=1.0, average=average),
        batch_size=batch_size,
        max_epochs=max_epochs,
        validation=held_out,
        patience=patience,
        keep_start=True,
        rng=rng,
        description="contextual windows",
    )
    # Only the start has weights of 0.
    kept_start = not np.asarray(operator.readout.weights[...]).any()
    summary = {
        **report.as_dict(),
        "kept_start": bool(kept_start),
        "windows": len(learned),
        "validation_windows": len(held_out),
        "motifs": len(motifs),
    }
    return WindowModel(operator, context_map, contexts, targets.shape[1], summary)


def find_motifs(
    config: ContextualEpigenomicsConfig,
    tokens: Int[np.ndarray, "windows length"],
    targets: Float[np.ndarray, "windows contexts positions"],
    contacts: Float[np.ndarray, "windows positions positions"] | None,
) -> list[Float[np.ndarray, "width 4"]]:
    """Motifs for three quarters of the filters at most.

    What the ends of strong contacts have in excess comes first, then what labelled positions have, then what has a
    label next to it: elements that act on others are not labelled themselves.
    """
    from diffbio_sc.numerics.sequence.enriched import enriched_motifs

    most = 3 * config.stem_filters // 4
    options = {"position_width": config.token_width, "width": config.stem_width}
    labels = np.asarray(targets).transpose(0, 2, 1) > 0
    found = []
    if contacts is not None:
        found = enriched_motifs(tokens, strongest_contacts(contacts), most=most // 4, **options)
    found += enriched_motifs(tokens, labels, most=most // 2, **options)
    found += enriched_motifs(tokens, neighbours(labels.any(2)), most=most - len(found), **options)
    return [motif.log_odds for motif in found]


def neighbours(
    labels: Bool[np.ndarray, "windows positions"], reach: int = 2
) -> Bool[np.ndarray, "windows positions 1"]:
    """Mark positions without a label that have one at most ``reach`` positions away."""
    positions = labels.shape[1]
    padded = np.pad(labels, ((0, 0), (reach, reach)))
    near = np.any([padded[:, shift : shift + positions] for shift in range(2 * reach + 1)], axis=0)
    return (near & ~labels)[:, :, None]


def _held_out(validation: Any, windows: int, rng: int) -> np.ndarray:
    """Rows of the windows to hold out."""
    if np.ndim(validation) > 0:
        return np.asarray(validation)
    if not 0 < validation < 1:
        raise ValueError(f"validation must be a share between 0 and 1, or rows, found {validation!r}.")
    number = max(1, round(validation * windows))
    return np.sort(np.random.default_rng(rng).permutation(windows)[:number])


def _rows(data: Mapping[str, np.ndarray], key: str, rows: np.ndarray) -> np.ndarray | None:
    return data[key][rows] if key in data else None


def as_operator_input(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch with bases made one-hot, as the operator reads it."""
    import jax
    import jax.numpy as jnp

    data = {key: value for key, value in batch.items() if key not in ("tokens", "is_training")}
    # The code 4 is out of range, which gives the row of zeros that an unknown base is.
    return {**data, "sequence": jax.nn.one_hot(jnp.asarray(batch["tokens"]), 4)}


def _window_loss(
    operator: ContextualEpigenomicsOperator, batch: dict[str, Array], key: Array
) -> tuple[Array, dict[str, Array]]:
    terms = operator.loss_terms(as_operator_input(batch))
    # Held-out windows judge the labels alone: guidance is there to help them.
    value = terms["supervised"] if operator.deterministic else terms["total"]
    return value, {name: terms[name] for name in ("supervised", "chromatin_guidance")}


def _training_data(
    tokens: np.ndarray,
    targets: np.ndarray,
    config: ContextualEpigenomicsConfig,
    tf_context: np.ndarray | None,
    contacts: np.ndarray | None,
    start_logits: np.ndarray | None,
) -> tuple[dict[str, np.ndarray], ContextMap | None]:
    targets = np.asarray(targets)
    windows, length = tokens.shape
    positions = -(-length // config.token_width)
    if targets.ndim != 3 or targets.shape[::2] != (windows, positions):
        raise ValueError(f"targets must have the shape ({windows}, contexts, {positions}), found {targets.shape}.")
    if not np.isin(targets, (0, 1)).all():
        raise ValueError("targets must be 0 or 1.")
    # As bytes: the step makes them numbers, and a byte is a quarter of one.
    data = {"tokens": tokens, "targets": targets.astype(np.uint8)}
    context_map = None
    if config.use_tf_context:
        if tf_context is None:
            raise ValueError("config.use_tf_context needs tf_context.")
        tf_context = np.asarray(tf_context, np.float64)
        if tf_context.ndim != 2 or len(tf_context) != targets.shape[1]:
            raise ValueError(
                f"tf_context must have one row for each of {targets.shape[1]} contexts, found {tf_context.shape}."
            )
        if not np.isfinite(tf_context).all():
            raise ValueError("tf_context must be finite: leave out contexts without expression.")
        context_map = ContextMap.of(tf_context)
        data["tf_context"] = context_map(tf_context)[None]
    if config.use_chromatin_guidance or config.use_contact_input:
        if contacts is None:
            raise ValueError("config.use_chromatin_guidance and config.use_contact_input need contacts.")
        data["chromatin_contacts"] = np.asarray(contacts, np.float32)
    if start_logits is not None:
        data["start_logits"] = np.asarray(start_logits, np.float32)
    return data, context_map


def _set_base_rate(operator: ContextualEpigenomicsOperator, data: Mapping[str, np.ndarray]) -> None:
    if "start_logits" not in data:
        ones, number = float(data["targets"].sum(dtype=np.int64)), data["targets"].size
        operator.readout.bias[...] = np.full(1, np.log((ones + 0.5) / (number - ones + 0.5)), np.float32)


def _pair_scores(found: Mapping[str, Array]) -> Float[np.ndarray, "windows positions positions"]:
    if "contact_logits" in found:
        return np.asarray(found["contact_logits"])
    embeddings = np.asarray(found["token_embeddings"])
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)
    return unit @ unit.swapaxes(-1, -2)


def strongest_contacts(
    contacts: Float[np.ndarray, "windows positions positions"], share: float = 0.05
) -> Bool[np.ndarray, "windows positions 1"]:
    """Mark positions with the strongest contacts beyond what their distance explains."""
    values = np.asarray(contacts, np.float32)
    positions = values.shape[1]
    apart = np.abs(np.subtract.outer(np.arange(positions), np.arange(positions)))
    decay = np.array([values[:, apart == distance].mean() for distance in range(positions)])
    # Neighbours touch whatever they are.
    far = apart > max(1, positions // 8)
    strongest = np.where(far, values - decay[apart], -np.inf).max(2)
    return (strongest > np.quantile(strongest, 1.0 - share))[:, :, None]
