"""The one training loop: an epoch is one compiled loop over minibatches that never leave the device."""

from __future__ import annotations

import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from diffbio_sc._progress import progress
from diffbio_sc.operators._operator import FitReport, Operator
from diffbio_sc.training import batches
from diffbio_sc.training.checkpoint import read_checkpoint, write_checkpoint
from diffbio_sc.training.devices import place_training
from diffbio_sc.training.stopping import EarlyStopping

Loss = Callable[[Any, dict[str, Array], Array], Any]


class _Plan(NamedTuple):
    """All that an epoch is compiled for, besides shapes. Equal plans share the compiled code."""

    training: nnx.GraphDef[Any]
    evaluation: nnx.GraphDef[Any]
    wrt: Any
    loss: Loss
    optimizer: optax.GradientTransformation
    batch_size: int
    weighted: bool
    max_nonfinite_steps: int
    sharding: jax.sharding.Sharding | None


class _Variables(NamedTuple):
    """What training changes."""

    trained: nnx.State
    other: nnx.State
    optimizer: Any


class _Failures(NamedTuple):
    """Steps that were skipped because loss or gradient was not finite.

    ``in_a_row`` is the current run of them, ``last_loss`` the loss of the latest.
    """

    count: Int[Array, ""]
    in_a_row: Int[Array, ""]
    last_loss: Float[Array, ""]


def train(
    operator: Operator,
    data: Mapping[str, Any],
    *,
    loss: Loss | None = None,
    weighted: bool | None = None,
    sample_keys: Collection[str] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    learning_rate: float | Callable[[Any], Any] = 1e-3,
    gradient_clip: float | None = None,
    wrt: Any = nnx.Param,
    batch_size: int | None = 128,
    max_epochs: int = 100,
    rng: int | np.random.Generator | Array = 0,
    validation_data: Mapping[str, Any] | None = None,
    validation_fraction: float = 0.0,
    patience: int | None = None,
    min_delta: float = 0.0,
    max_nonfinite_steps: int = 5,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    resume: bool = True,
    description: str = "training",
) -> FitReport:
    """Lower a loss over minibatches by gradient descent, changing ``operator`` in place.

    Parameters
    ----------
    operator
        Operator to train; left in evaluation mode (``operator.eval()``).
    data
        Arrays by name, held on the device for the whole run.
    loss
        ``loss(operator, batch, key)``, a scalar that averages over the samples of the batch, or a pair of it and a
        dict of scalars to record beside it. ``key`` is fresh in each step. Default: ``operator.loss(batch)``.
        Compiled code is found again by the function itself: define it once, outside the calls.
    weighted
        Whether ``loss`` is a weighted average that follows ``batch["sample_weight"]``; default what
        ``operator.loss_takes_weights`` says of the default loss, False for a loss given. See Notes.
    sample_keys
        Names of the arrays whose first axis counts samples; the others are given whole to every batch. Default: all.
    optimizer
        Any optax transformation; pass the same object again to find compiled code again. Default Adam.
    learning_rate
        Of the default optimiser, a number or an optax schedule of the step.
    gradient_clip
        Largest global norm of a gradient; longer ones are shortened to it.
    wrt
        nnx filter of the variables to train.
    batch_size
        Samples a step; None takes all at once. At most the number of samples.
    max_epochs
        Passes through the data.
    rng
        Seed, numpy generator or JAX key of the order of samples, the validation split and the loss's keys.
    validation_data
        Samples on which the loss is followed after each epoch. Arrays without sample axis may be left out.
    validation_fraction
        Share of ``data`` to hold out for the same, instead of ``validation_data``.
    patience
        Epochs without progress of the validation loss (of the training loss, if there is no validation) after which
        to stop. Default: never.
    min_delta
        Fall of that loss that counts as progress.
    max_nonfinite_steps
        Steps in a row with a loss or gradient that is not finite after which to raise. Such a step changes nothing.
    checkpoint
        File to keep the state of the run in; it stays when the run ends.
    checkpoint_every
        Epochs between writes of it.
    resume
        Whether to go on from ``checkpoint`` if it exists. The end is bit-identical to an uninterrupted run's.
    description
        Name on the progress bar.

    Returns
    -------
    History by epoch (``loss``, the loss's own terms, ``nonfinite_steps``, each but the last also as
    ``validation_...``), whether patience ended the run, epochs and seconds. With validation or patience the operator
    has the parameters of the epoch with the lowest watched loss, else the last.

    Raises
    ------
    FloatingPointError
        After ``max_nonfinite_steps`` non-finite steps in a row; the operator keeps the last finite parameters.
    KeyError, TypeError, ValueError
        If data, options or checkpoint do not fit.

    Notes
    -----
    Samples are visited in the order ``training.batches.epoch_order`` gives, anew in each epoch. A weighted loss sees
    every sample once an epoch: the last batch is filled up with samples of weight 0. A loss without weights cannot
    tell those apart, so that an epoch has only the full batches and leaves out the few samples at the end of its order.
    Validation always covers every sample.

    A second call compiles nothing if operator configuration, loss, optimiser, options and the shapes are the same. The
    number of samples may then be another within the bucket (an eighth, :func:`~.batches.bucket_size`), except that a
    loss without weights compiles for each batch larger than the data and each remainder of validation samples.

    With several visible devices each batch is divided among them; the result is the same up to rounding.
    """
    started = time.perf_counter()
    _check_options(
        batch_size=batch_size,
        max_epochs=max_epochs,
        patience=patience,
        max_nonfinite_steps=max_nonfinite_steps,
        checkpoint_every=checkpoint_every,
    )
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, found {validation_fraction!r}.")
    if validation_fraction > 0 and validation_data is not None:
        raise ValueError("give validation_data or validation_fraction, not both.")
    if not min_delta >= 0:
        raise ValueError(f"min_delta must not be negative, found {min_delta!r}.")
    if gradient_clip is not None and not gradient_clip > 0:
        raise ValueError(f"gradient_clip must be above 0, found {gradient_clip!r}.")
    if loss is None:
        operator.check_keys(data)
    weighted = (loss is None and operator.loss_takes_weights) if weighted is None else weighted
    loss = _operator_loss if loss is None else loss
    size = batches.count_samples(data, sample_keys, name="data")
    seed_key = _as_key(rng)
    split_key, order_key, loss_key = jax.random.split(seed_key, 3)

    rows = np.arange(size)
    held_out = rows[:0]
    if validation_fraction > 0:
        rows, held_out = batches.split_samples(split_key, size, validation_fraction)
    # A loss with weights has its batch filled up to a size that data sets of a bucket share.
    largest_batch = batches.bucket_size(len(rows)) if weighted else len(rows)
    batch_size = largest_batch if batch_size is None else min(batch_size, largest_batch)
    placement = place_training(batch_size)
    samples, shared = batches.place_samples(data, sample_keys, size, sharding=placement.replicated)
    training_set = batches.SampleSet(
        samples, shared, batches.padded_index(rows, sharding=placement.replicated), len(rows)
    )
    validation_set = None
    if validation_fraction > 0:
        index = batches.padded_index(held_out, sharding=placement.replicated)
        validation_set = batches.SampleSet(samples, shared, index, len(held_out))
    elif validation_data is not None:
        validation_size = batches.count_samples(
            validation_data, samples if sample_keys is None else sample_keys, name="validation_data"
        )
        samples, own_shared = batches.place_samples(
            validation_data, tuple(samples), validation_size, sharding=placement.replicated
        )
        index = batches.padded_index(np.arange(validation_size), sharding=placement.replicated)
        validation_set = batches.SampleSet(samples, {**shared, **own_shared}, index, validation_size)

    wrt = tuple(wrt) if isinstance(wrt, list) else wrt
    operator.eval()
    evaluation = nnx.graphdef(operator)
    operator.train()
    training, *states = nnx.split(operator, wrt, ...)
    operator.eval()
    trained, other = jax.tree.map(jnp.asarray, states)
    if not jax.tree.leaves(trained):
        raise ValueError(f"{type(operator).__name__} has no variables that wrt={wrt!r} selects: nothing to train.")
    if optimizer is None:
        optimizer = _adam(learning_rate)
    if gradient_clip is not None:
        optimizer = _clipped(optimizer, gradient_clip)
    plan = _Plan(training, evaluation, wrt, loss, optimizer, batch_size, weighted, max_nonfinite_steps, placement.batch)
    # The epoch donates its variables; the operator's own arrays may be shared with clones of it, so they are copied.
    home = jax.tree.map(lambda leaf: leaf.sharding, (trained, other))
    variables = _copy(jax.device_put(_Variables(trained, other, optimizer.init(trained)), placement.replicated))
    order_key, loss_key = jax.device_put((order_key, loss_key), placement.replicated)

    watches = validation_set is not None or patience is not None
    stopping = EarlyStopping(patience, float(min_delta))
    history: dict[str, list[float]] = {}
    best = (variables.trained, variables.other)
    first_epoch, seconds_before = 0, 0.0
    run = {
        **operator.identity(),
        "samples": size,
        "data": batches.fingerprint(data) if checkpoint is not None else None,
        "validation_samples": 0 if validation_set is None else validation_set.size,
        "batch_size": batch_size,
        "weighted": weighted,
        "random_key": np.asarray(jax.random.key_data(seed_key)).tolist(),
    }
    if checkpoint is not None and resume and os.path.exists(checkpoint):
        templates = {"variables": variables, **({"best": best} if watches else {})}
        found, trees = read_checkpoint(checkpoint, run, templates)
        variables = jax.device_put(trees["variables"], placement.replicated)
        best = jax.device_put(trees.get("best", best), placement.replicated)
        history, first_epoch, seconds_before = found["history"], found["epochs"], found["seconds"]
        stopping.best, stopping.reference, stopping.waited = found["stopping"]
    best = _copy(best)
    failures = jax.device_put(_Failures(jnp.int32(0), jnp.int32(0), jnp.float32(0)), placement.replicated)

    def elapsed() -> float:
        return seconds_before + time.perf_counter() - started

    epochs = first_epoch
    for epoch in progress(range(first_epoch, max_epochs), description):
        if stopping.stops:
            break
        variables, failures, averages = _run_epoch(plan, variables, failures, training_set, epoch, order_key, loss_key)
        record = {name: float(value) for name, value in averages.items()}
        in_a_row = int(failures.in_a_row)
        if in_a_row >= max_nonfinite_steps:
            _put_back(operator, (variables.trained, variables.other), home)
            raise FloatingPointError(_nonfinite_message(in_a_row, epoch, float(failures.last_loss)))
        if validation_set is not None:
            validation = _evaluate(
                plan,
                variables.trained,
                variables.other,
                validation_set,
                loss_key,
                **_evaluation_sizes(plan, validation_set),
            )
            record |= {f"validation_{name}": float(value) for name, value in validation.items()}
        record["nonfinite_steps"] = int(failures.count)
        for name, value in record.items():
            history.setdefault(name, []).append(value)
        epochs = epoch + 1
        if stopping.update(record["loss" if validation_set is None else "validation_loss"]) and watches:
            best = _copy((variables.trained, variables.other))
        if checkpoint is not None and (epochs % checkpoint_every == 0 or epochs == max_epochs or stopping.stops):
            state = {
                "epochs": epochs,
                "history": history,
                "seconds": elapsed(),
                "stopping": [stopping.best, stopping.reference, stopping.waited],
            }
            trees = {"variables": variables, **({"best": best} if watches else {})}
            write_checkpoint(checkpoint, run, state, trees)

    skipped = int(sum(history["nonfinite_steps"]))
    if skipped:
        warnings.warn(
            f"{skipped} training steps of {type(operator).__name__} had a loss or gradient that was not finite and "
            "were skipped; history['nonfinite_steps'] tells the epochs.",
            RuntimeWarning,
            stacklevel=2,
        )
    restores = watches and math.isfinite(stopping.best)
    _put_back(operator, best if restores else (variables.trained, variables.other), home)
    operator.mark_fitted()
    curves = {name: np.asarray(values, np.float64) for name, values in history.items()}
    return FitReport(curves, stopping.stops, epochs, elapsed())


def _operator_loss(operator: Operator, batch: dict[str, Array], key: Array) -> Float[Array, ""]:
    return operator.loss(batch)


@functools.lru_cache(maxsize=64)
def _adam(learning_rate: Any) -> optax.GradientTransformation:
    # Cached, because a new optax object would be a new plan, compiled anew.
    return optax.adam(learning_rate)


@functools.lru_cache(maxsize=64)
def _clipped(optimizer: optax.GradientTransformation, norm: float) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(norm), optimizer)


@functools.partial(jax.jit, static_argnames=("plan",), donate_argnames=("variables",))
def _run_epoch(
    plan: _Plan,
    variables: _Variables,
    failures: _Failures,
    data: batches.SampleSet,
    epoch: Int[Array, ""],
    order_key: Array,
    loss_key: Array,
) -> tuple[_Variables, _Failures, dict[str, Array]]:
    """Take one step for each batch; average loss and terms over the samples of the finite steps."""
    failures = failures._replace(count=jnp.int32(0))
    bucket = data.index.shape[0]
    order = batches.epoch_order(jax.random.fold_in(order_key, epoch), data.size, bucket)
    epoch_key = jax.random.fold_in(loss_key, epoch)
    # The number of steps is data, not a shape: a loop over the whole bucket would run empty batches at its end.
    full, rest = data.size // plan.batch_size, data.size % plan.batch_size
    steps = full + (rest > 0) if plan.weighted else full

    @jax.jit
    def step(variables: _Variables, failures: _Failures, number: Array) -> Any:
        batch, count = batches.take_batch(
            data.samples, data.shared, data.index, order, number * plan.batch_size, plan.batch_size, data.size,
            weighted=plan.weighted, sharding=plan.sharding,
        )  # fmt: skip

        def objective(trained: nnx.State) -> Any:
            operator = _merge(plan.training, trained, variables.other)
            value, terms = _loss_and_terms(plan.loss, operator, batch, jax.random.fold_in(epoch_key, number))
            return value, (terms, nnx.split(operator, plan.wrt, ...)[2])

        (value, (terms, other)), gradient = jax.value_and_grad(objective, has_aux=True)(variables.trained)
        finite = jnp.isfinite(value)
        for leaf in jax.tree.leaves(gradient):
            finite &= jnp.isfinite(leaf).all()
        change, optimizer_state = plan.optimizer.update(gradient, variables.optimizer, variables.trained)
        stepped = _Variables(optax.apply_updates(variables.trained, change), other, optimizer_state)
        variables = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, variables)
        failures = _Failures(
            failures.count + ~finite,
            jnp.where(finite, 0, failures.in_a_row + 1),
            jnp.where(finite, failures.last_loss, value.astype(jnp.float32)),
        )
        terms = {"loss": value, **terms}
        weight = jnp.where(finite, count, 0.0)
        sums = {name: jnp.where(finite, term, 0.0).astype(jnp.float32) * weight for name, term in terms.items()}
        return variables, failures, sums, weight

    def body(carry: Any) -> Any:
        number, variables, failures, totals, total_weight = carry
        variables, failures, sums, weight = step(variables, failures, number)
        return number + 1, variables, failures, jax.tree.map(jnp.add, totals, sums), total_weight + weight

    def goes_on(carry: Any) -> Array:
        number, _, failures, _, _ = carry
        return (number < steps) & (failures.in_a_row < plan.max_nonfinite_steps)

    shapes = jax.eval_shape(step, variables, failures, jnp.int32(0))[2]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    carry = (jnp.int32(0), variables, failures, zeros, jnp.float32(0))
    _, variables, failures, totals, total_weight = jax.lax.while_loop(goes_on, body, carry)
    # Without a finite step this is 0 / 0: the epoch has no loss.
    return variables, failures, {name: total / total_weight for name, total in totals.items()}


def _evaluation_sizes(plan: _Plan, data: batches.SampleSet) -> dict[str, int]:
    """Sizes of the batches of an evaluation and of a shorter one at its end; weights fill that up instead."""
    if plan.weighted:
        return {"batch_size": plan.batch_size, "remainder": 0}
    batch_size = min(plan.batch_size, data.size)
    return {"batch_size": batch_size, "remainder": data.size % batch_size}


@functools.partial(jax.jit, static_argnames=("plan", "batch_size", "remainder"))
def _evaluate(
    plan: _Plan,
    trained: nnx.State,
    other: nnx.State,
    data: batches.SampleSet,
    loss_key: Array,
    *,
    batch_size: int,
    remainder: int,
) -> dict[str, Array]:
    """Average loss and terms over all samples. Every epoch draws the same keys, so that epochs are comparable."""
    order = jnp.arange(data.index.shape[0])
    size = jnp.asarray(data.size)
    steps = -(-size // batch_size) if plan.weighted else size // batch_size

    def summed(number: Array, taken: int) -> dict[str, Array]:
        sharding = plan.sharding if taken == plan.batch_size else None
        batch, count = batches.take_batch(
            data.samples, data.shared, data.index, order, number * batch_size, taken, size,
            weighted=plan.weighted, sharding=sharding,
        )  # fmt: skip
        operator = _merge(plan.evaluation, trained, other)
        # Keys beyond the reach of epochs, which count up from 0.
        key = jax.random.fold_in(jax.random.fold_in(loss_key, np.uint32(2**32 - 1)), number)
        value, terms = _loss_and_terms(plan.loss, operator, batch, key)
        return {name: term.astype(jnp.float32) * count for name, term in {"loss": value, **terms}.items()}

    full = jax.jit(functools.partial(summed, taken=batch_size))
    shapes = jax.eval_shape(full, jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    totals = jax.lax.fori_loop(0, steps, lambda number, sums: jax.tree.map(jnp.add, sums, full(number)), zeros)
    if remainder:
        totals = jax.tree.map(jnp.add, totals, summed(steps, remainder))
    return {name: total / size for name, total in totals.items()}


def _merge(graph: nnx.GraphDef[Any], *states: nnx.State) -> Any:
    """Build an operator that may change its variables (random streams, running averages) under the current trace."""
    # A variable belongs to the trace in which it was made, and mapping makes new ones.
    return nnx.merge(graph, *(jax.tree.map(lambda leaf: leaf, state) for state in states))


def _loss_and_terms(loss: Loss, operator: Any, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
    returned = loss(operator, batch, key)
    value, terms = returned if isinstance(returned, tuple) else (returned, {})
    value = jnp.asarray(value)
    terms = {name: jnp.asarray(term) for name, term in terms.items()}
    for name, term in {"loss": value, **terms}.items():
        if term.shape != ():
            raise ValueError(f"the loss must return scalars: {name!r} has shape {term.shape}.")
    reserved = {"loss", "nonfinite_steps"} & set(terms)
    if reserved:
        raise ValueError(f"the loss must not name its terms {sorted(reserved)}: the history has curves of that name.")
    return value, terms


def _copy(tree: Any) -> Any:
    # ``array`` also makes weak types strong: an epoch returns strong ones, and would be compiled again for those.
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype), tree)


def _put_back(operator: Operator, states: tuple[nnx.State, nnx.State], home: tuple[Any, Any]) -> None:
    """Give the operator its variables, on the devices where they were."""
    for state, shardings in zip(states, home, strict=True):
        nnx.update(operator, jax.tree.map(jax.device_put, state, shardings))


def _as_key(rng: int | np.random.Generator | Array) -> Array:
    if isinstance(rng, np.random.Generator):
        rng = int(rng.integers(2**31))
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        return jax.random.key(int(rng))
    if isinstance(rng, jax.Array) and jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) and rng.shape == ():
        return rng
    raise TypeError(f"rng must be an integer, a numpy Generator or one jax.random.key, found {rng!r}.")


def _check_options(**options: int | None) -> None:
    for name, value in options.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1
        if not whole and not (value is None and name in ("batch_size", "patience")):
            raise ValueError(f"{name} must be a positive integer, found {value!r}.")


def _nonfinite_message(steps: int, epoch: int, loss: float) -> str:
    what = "its gradient is not finite" if math.isfinite(loss) else "the loss itself is not finite"
    return (
        f"training stopped in epoch {epoch + 1} after {steps} steps in a row without a finite gradient: the loss was "
        f"{loss:g}, {what}. The operator keeps its last finite parameters. Look for NaN or extreme values in the data, "
        "lower the learning rate, or set gradient_clip."
    )
