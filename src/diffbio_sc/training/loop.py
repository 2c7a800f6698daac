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
from jaxtyping import Array, Bool, Float, Int

from diffbio_sc._progress import progress
from diffbio_sc.numerics.counts.sparse_rows import stratified_order
from diffbio_sc.training import batches
from diffbio_sc.training.checkpoint import read_checkpoint, write_checkpoint
from diffbio_sc.training.devices import place_training
from diffbio_sc.training.optimizers import Adam, adam_step
from diffbio_sc.training.report import FitReport
from diffbio_sc.training.stopping import EarlyStopping
from diffbio_sc.training.trainable import Trainable
from diffbio_sc.training.vectors import Layout, Vectors

# Of the keys of evaluations, beyond the reach of epochs, which count up from 0.
_EVALUATION = np.uint32(2**32 - 1)

Loss = Callable[[Any, dict[str, Array], Array], Any]


class _AdamPlan(NamedTuple):
    """What is compiled of Adam: the rates themselves are data.

    ``parts`` has the number of each parameter's rate.
    """

    parts: tuple[int, ...]
    epsilon: float
    clip: float | None


class _Plan(NamedTuple):
    """All that an epoch is compiled for, besides shapes. Equal plans share the compiled code."""

    training: nnx.GraphDef[Any]
    evaluation: nnx.GraphDef[Any]
    layout: Layout
    wrt: Any
    loss: Loss
    optimizer: _AdamPlan | optax.GradientTransformation
    batch_size: int
    weighted: bool
    stratified: bool
    max_nonfinite_steps: int
    sharding: jax.sharding.Sharding | None


class _Variables(NamedTuple):
    """What training changes; the trained parameters as vectors."""

    trained: Vectors
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
    operator: Trainable,
    data: Mapping[str, Any],
    *,
    loss: Loss | None = None,
    weighted: bool | None = None,
    sample_keys: Collection[str] | None = None,
    optimizer: Adam | optax.GradientTransformation | None = None,
    learning_rate: float | Callable[[Any], Any] = 1e-3,
    gradient_clip: float | None = None,
    wrt: Any = nnx.Param,
    batch_size: int | None = 128,
    stratified: bool = False,
    max_epochs: int = 100,
    rng: int | np.random.Generator | Array = 0,
    validation_data: Mapping[str, Any] | None = None,
    validation_fraction: float = 0.0,
    validation_rows: np.ndarray | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    keep_start: bool = False,
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
        dict of scalars to record beside it. ``key`` is fresh in each step, ``batch["is_training"]`` a boolean. Default:
        ``operator.loss(batch)``.
        Compiled code is found again by the function itself: define it once, outside the calls.
    weighted
        Whether ``loss`` is a weighted average that follows ``batch["sample_weight"]``; default what
        ``operator.loss_takes_weights`` says of the default loss, False for a loss given. See Notes.
    sample_keys
        Names of the arrays whose first axis counts samples; the others are given whole to every batch. Default: all.
    optimizer
        :class:`~diffbio_sc.training.optimizers.Adam`, the default and the fastest; or any optax transformation: pass
        the same object again to find compiled code again.
    learning_rate
        Of the default optimiser, a number or an optax schedule of the step.
    gradient_clip
        Largest global norm of a gradient; longer ones are shortened to it.
    wrt
        nnx filter of the variables to train.
    batch_size
        Samples a step; None takes all at once. At most the number of samples.
    stratified
        Whether each batch has one sample of every run of neighbours, as
        :func:`~diffbio_sc.numerics.counts.sparse_rows.stratified_order` says: for samples in the order of their
        entries.
    max_epochs
        Passes through the data.
    rng
        Seed, numpy generator or JAX key of the order of samples, the validation split and the loss's keys.
    validation_data
        Samples on which the loss is followed after each epoch. Arrays without sample axis may be left out.
    validation_fraction
        Share of ``data`` to hold out for the same, instead of ``validation_data``.
    validation_rows
        Rows of ``data`` to hold out for the same, instead of either.
    patience
        Epochs without progress of the validation loss (of the training loss, if there is no validation) after which
        to stop. Default: never.
    min_delta
        Fall of that loss that counts as progress.
    keep_start
        Whether the parameters at the start count as an epoch for validation: they are given back if no epoch is better.
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
    Samples are visited in the order ``training.batches.epoch_order`` gives (``stratified``: ``stratified_order``), anew
    in each epoch. A weighted loss sees every sample once an epoch: the last batch is filled up with samples of weight
    0. A loss without weights cannot tell those apart, so that an epoch has only the full batches and leaves out the few
    samples at the end of its order. Validation always covers every sample.

    A second call compiles nothing if operator configuration, loss, optimiser, options and the shapes are the same; the
    learning rates of ``Adam`` may be others. The
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
    if (validation_fraction > 0) + (validation_data is not None) + (validation_rows is not None) > 1:
        raise ValueError("give validation_data or validation_fraction, not both.")
    if keep_start and not (validation_fraction > 0 or validation_data is not None or validation_rows is not None):
        raise ValueError(
            "keep_start compares with the start on held-out samples: give validation_fraction or the like."
        )
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
    elif validation_rows is not None:
        held_out = np.sort(np.asarray(validation_rows))
        rows = np.setdiff1d(rows, held_out)
        if len(rows) == 0 or len(rows) + len(held_out) != size:
            raise ValueError(f"validation_rows must be some of the rows 0 ... {size - 1}, each once, and leave others.")
    # A loss with weights has its batch filled up to a size that data sets of a bucket share.
    largest_batch = batches.bucket_size(len(rows)) if weighted else len(rows)
    batch_size = largest_batch if batch_size is None else min(batch_size, largest_batch)
    placement = place_training(batch_size)
    samples, shared = batches.place_samples(data, sample_keys, size, sharding=placement.replicated)
    training_set = batches.SampleSet(
        samples, shared, batches.padded_index(rows, sharding=placement.replicated), len(rows)
    )
    validation_set = None
    if len(held_out):
        # As long as the training set's, so that the same code serves both.
        index = batches.padded_index(held_out, bucket=len(training_set.index), sharding=placement.replicated)
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
        optimizer = _scheduled_adam(learning_rate) if callable(learning_rate) else Adam(float(learning_rate))
    optimizer_state = optimizer.init(trained)
    if isinstance(optimizer, Adam):
        planned = _AdamPlan(optimizer.parts(trained), optimizer.epsilon, gradient_clip)
    elif gradient_clip is None:
        planned = optimizer
    else:
        planned = _clipped(optimizer, gradient_clip)
        optimizer_state = planned.init(trained)
    layout = Layout.of(trained)
    plan = _Plan(
        training, evaluation, layout, wrt, loss, planned, batch_size, weighted, stratified, max_nonfinite_steps,
        placement.batch,
    )  # fmt: skip
    # An operator that does the same in training and evaluation is compiled once: the steps of an evaluation are those
    # of an epoch without their effect. It costs a gradient that is not used; compiling costs that many times over.
    shares_code = weighted and len(held_out) > 0 and training == evaluation
    # The epoch donates its variables; the operator's own arrays may be shared with clones of it, so they are copied.
    home = jax.tree.map(lambda leaf: leaf.sharding, (trained, other))
    variables = _Variables(layout.join(trained, library=np), other, optimizer_state)
    variables = _copy(jax.device_put(variables, placement.replicated))
    order_key, loss_key = jax.device_put((order_key, loss_key), placement.replicated)

    watches = validation_set is not None or patience is not None
    stopping = EarlyStopping(patience, float(min_delta))
    history: dict[str, list[float]] = {}
    best: tuple[Vectors, nnx.State] | None = None
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
        templates = _stored(layout, variables, (variables.trained, variables.other) if watches else None)
        found, trees = read_checkpoint(checkpoint, run, templates)
        variables, best = jax.device_put(_restored(layout, trees), placement.replicated)
        variables = _copy(variables)
        history, first_epoch, seconds_before = found["history"], found["epochs"], found["seconds"]
        stopping.best, stopping.reference, stopping.waited = found["stopping"]
    failures = jax.device_put(_no_failures(), placement.replicated)

    def elapsed() -> float:
        return seconds_before + time.perf_counter() - started

    def validate(variables: _Variables, held_out: batches.SampleSet) -> tuple[_Variables, dict[str, float]]:
        if shares_code:
            none = jax.device_put(_no_failures(), placement.replicated)
            variables, _, averages = _run_epoch(plan, variables, none, held_out, 0, order_key, loss_key, False)
        else:
            state, sizes = (variables.trained, variables.other), _evaluation_sizes(plan, held_out)
            averages = _evaluate(plan, *state, held_out, loss_key, **sizes)
        return variables, {f"validation_{name}": float(value) for name, value in averages.items()}

    if keep_start and first_epoch == 0 and validation_set is not None:
        variables, record = validate(variables, validation_set)
        if stopping.update(record["validation_loss"]):
            best = _copy((variables.trained, variables.other))
        stopping.waited = 0
    epochs = first_epoch
    for epoch in progress(range(first_epoch, max_epochs), description):
        if stopping.stops:
            break
        variables, failures, averages = _run_epoch(
            plan, variables, failures, training_set, epoch, order_key, loss_key, True
        )
        record = {name: float(value) for name, value in averages.items()}
        in_a_row = int(failures.in_a_row)
        if in_a_row >= max_nonfinite_steps:
            _put_back(operator, layout, (variables.trained, variables.other), home)
            raise FloatingPointError(_nonfinite_message(in_a_row, epoch, float(failures.last_loss)))
        if validation_set is not None:
            variables, validation = validate(variables, validation_set)
            record |= validation
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
            last = (variables.trained, variables.other)
            trees = _stored(layout, variables, (last if best is None else best) if watches else None)
            write_checkpoint(checkpoint, run, state, trees)

    skipped = int(sum(history["nonfinite_steps"]))
    if skipped:
        warnings.warn(
            f"{skipped} training steps of {type(operator).__name__} had a loss or gradient that was not finite and "
            "were skipped; history['nonfinite_steps'] tells the epochs.",
            RuntimeWarning,
            stacklevel=2,
        )
    restored = best if watches and math.isfinite(stopping.best) else None
    _put_back(operator, layout, (variables.trained, variables.other) if restored is None else restored, home)
    operator.mark_fitted()
    curves = {name: np.asarray(values, np.float64) for name, values in history.items()}
    return FitReport(curves, stopping.stops, epochs, elapsed())


def _operator_loss(operator: Trainable, batch: dict[str, Array], key: Array) -> Float[Array, ""]:
    return operator.loss(batch)


@functools.lru_cache(maxsize=64)
def _scheduled_adam(learning_rate: Any) -> optax.GradientTransformation:
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
    trains: Bool[Array, ""],
) -> tuple[_Variables, _Failures, dict[str, Array]]:
    """Take one step for each batch; average loss and terms over the samples of the finite steps.

    Without ``trains`` no step changes anything, the average is over all samples, and the keys are the same every time.
    """
    failures = failures._replace(count=jnp.int32(0))
    bucket = data.index.shape[0]
    order = _order(plan, jax.random.fold_in(order_key, epoch), data.size, bucket, plan.batch_size)
    epoch_key = jax.random.fold_in(loss_key, jnp.where(trains, jnp.uint32(epoch), _EVALUATION))
    # The number of steps is data, not a shape: a loop over the whole bucket would run empty batches at its end.
    full, rest = data.size // plan.batch_size, data.size % plan.batch_size
    steps = full + (rest > 0) if plan.weighted else full

    @jax.jit
    def step(variables: _Variables, failures: _Failures, number: Array) -> Any:
        batch, count = batches.take_batch(
            data.samples, data.shared, data.index, order, number * plan.batch_size, plan.batch_size, data.size,
            weighted=plan.weighted, sharding=plan.sharding,
        )  # fmt: skip
        batch[batches.TRAINING_KEY] = trains

        def objective(trained: nnx.State) -> Any:
            operator = _merge(plan.training, trained, variables.other)
            value, terms = _loss_and_terms(plan.loss, operator, batch, jax.random.fold_in(epoch_key, number))
            return value, (terms, nnx.split(operator, plan.wrt, ...)[2])

        trained = plan.layout.split(variables.trained)
        (value, (terms, other)), slopes = jax.value_and_grad(objective, has_aux=True)(trained)
        gradient = plan.layout.join(slopes, library=jnp)
        finite = jnp.isfinite(value)
        for vector in gradient.values():
            finite &= jnp.isfinite(vector).all()
        variables = _take_step(plan, variables, gradient, other, finite & trains)
        failures = _Failures(
            failures.count + ~finite,
            jnp.where(finite, 0, failures.in_a_row + 1),
            jnp.where(finite, failures.last_loss, value.astype(jnp.float32)),
        )
        terms = {"loss": value, **terms}
        counts = finite | ~trains
        weight = jnp.where(counts, count, 0.0)
        sums = {name: jnp.where(counts, term, 0.0).astype(jnp.float32) * weight for name, term in terms.items()}
        return variables, failures, sums, weight

    def body(carry: Any) -> Any:
        number, variables, failures, totals, total_weight = carry
        variables, failures, sums, weight = step(variables, failures, number)
        return number + 1, variables, failures, jax.tree.map(jnp.add, totals, sums), total_weight + weight

    def goes_on(carry: Any) -> Array:
        number, _, failures, _, _ = carry
        return (number < steps) & ((failures.in_a_row < plan.max_nonfinite_steps) | ~trains)

    shapes = jax.eval_shape(step, variables, failures, jnp.int32(0))[2]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    carry = (jnp.int32(0), variables, failures, zeros, jnp.float32(0))
    _, variables, failures, totals, total_weight = jax.lax.while_loop(goes_on, body, carry)
    # Without a finite step this is 0 / 0: the epoch has no loss.
    return variables, failures, {name: total / total_weight for name, total in totals.items()}


def _order(plan: _Plan, key: Array, size: Any, bucket: int, batch_size: int) -> Int[Array, " bucket"]:
    if plan.stratified:
        return stratified_order(key, size, bucket, batch_size)
    return batches.epoch_order(key, size, bucket)


def _take_step(
    plan: _Plan, variables: _Variables, gradient: Vectors, other: nnx.State, finite: Bool[Array, ""]
) -> _Variables:
    """Variables after a step; as before it if the step is not ``finite``."""

    def chosen(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)

    other = chosen(other, variables.other)
    if isinstance(plan.optimizer, _AdamPlan):
        parts, epsilon, clip = plan.optimizer
        if clip is not None:
            norm = jnp.sqrt(sum(jnp.vdot(vector, vector).real.astype(jnp.float32) for vector in gradient.values()))
            gradient = jax.tree.map(
                lambda vector: vector * jnp.minimum(1.0, clip / norm).astype(vector.dtype), gradient
            )
        stepped, state = adam_step(
            variables.trained, gradient, variables.optimizer, plan.layout, parts, epsilon, finite
        )
        return _Variables(stepped, other, state)
    trained = plan.layout.split(variables.trained)
    change, state = plan.optimizer.update(plan.layout.split(gradient), variables.optimizer, trained)
    moved = plan.layout.join(optax.apply_updates(trained, change), library=jnp)
    return _Variables(chosen(moved, variables.trained), other, chosen(state, variables.optimizer))


def _evaluation_sizes(plan: _Plan, data: batches.SampleSet) -> dict[str, int]:
    """Sizes of the batches of an evaluation and of a shorter one at its end; weights fill that up instead."""
    if plan.weighted:
        return {"batch_size": plan.batch_size, "remainder": 0}
    batch_size = min(plan.batch_size, data.size)
    return {"batch_size": batch_size, "remainder": data.size % batch_size}


@functools.partial(jax.jit, static_argnames=("plan", "batch_size", "remainder"))
def _evaluate(
    plan: _Plan,
    vectors: Vectors,
    other: nnx.State,
    data: batches.SampleSet,
    loss_key: Array,
    *,
    batch_size: int,
    remainder: int,
) -> dict[str, Array]:
    """Average loss and terms over all samples. Every epoch draws the same keys, so that epochs are comparable."""
    size, trained = jnp.asarray(data.size), plan.layout.split(vectors)
    # In the order of the samples, unless only mixed batches have room for their entries.
    bucket = data.index.shape[0]
    order = _order(plan, loss_key, size, bucket, batch_size) if plan.stratified else jnp.arange(bucket)
    steps = -(-size // batch_size) if plan.weighted else size // batch_size

    def summed(number: Array, taken: int) -> dict[str, Array]:
        sharding = plan.sharding if taken == plan.batch_size else None
        batch, count = batches.take_batch(
            data.samples, data.shared, data.index, order, number * batch_size, taken, size,
            weighted=plan.weighted, sharding=sharding,
        )  # fmt: skip
        batch[batches.TRAINING_KEY] = jnp.bool_(False)
        operator = _merge(plan.evaluation, trained, other)
        key = jax.random.fold_in(jax.random.fold_in(loss_key, _EVALUATION), number)
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


def _no_failures() -> _Failures:
    return _Failures(np.int32(0), np.int32(0), np.float32(0))


@jax.jit
def _copy(tree: Any) -> Any:
    # ``array`` also makes weak types strong: an epoch returns strong ones, and would be compiled again for those.
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype), tree)


def _stored(layout: Layout, variables: _Variables, best: tuple[Vectors, nnx.State] | None) -> dict[str, Any]:
    """Trees of a checkpoint; in its file each parameter has its own name."""
    trees: dict[str, Any] = {"variables": variables._replace(trained=_on_host(layout, variables.trained))}
    if best is not None:
        trees["best"] = (_on_host(layout, best[0]), best[1])
    return trees


def _restored(layout: Layout, trees: dict[str, Any]) -> tuple[_Variables, tuple[Vectors, nnx.State] | None]:
    """Inverse of :func:`_stored`."""
    variables = trees["variables"]
    variables = variables._replace(trained=layout.join(variables.trained, library=np))
    best = None
    if "best" in trees:
        best = (layout.join(trees["best"][0], library=np), trees["best"][1])
    return variables, best


def _on_host(layout: Layout, vectors: Vectors) -> Any:
    return layout.split({dtype: np.asarray(vector) for dtype, vector in vectors.items()})


def _put_back(operator: Trainable, layout: Layout, states: tuple[Vectors, nnx.State], home: tuple[Any, Any]) -> None:
    """Give the operator its variables, on the devices where they were."""
    for state, shardings in zip((_on_host(layout, states[0]), states[1]), home, strict=True):
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
