"""One epoch: a compiled loop over minibatches that never leave the device, and the same without a step, to evaluate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from diffbio_sc._compiled import jit_quickly
from diffbio_sc.numerics.counts.sparse_rows import stratified_order
from diffbio_sc.training import batches
from diffbio_sc.training.optimizers import AdamPlan, AdamState, adam_step
from diffbio_sc.training.vectors import Layout, Vectors

#: ``loss(operator, batch, key)``: a scalar, or a pair of it and a dict of scalars.
Loss = Callable[[Any, dict[str, Array], Array], Any]

# Of the keys of evaluations, beyond the reach of epochs, which count up from 0.
_EVALUATION = np.uint32(2**32 - 1)
#: Steps in a row with a loss or gradient that is not finite after which a run ends.
MOST_NONFINITE_STEPS = 5


class Plan(NamedTuple):
    """All that an epoch is compiled for, besides shapes. Equal plans share the compiled code.

    Attributes
    ----------
    training, evaluation
        Structure of the operator in each mode.
    layout
        Layout of the trained parameters.
    wrt
        Filter of the trained variables.
    loss
        Loss.
    optimizer
        What is compiled of Adam, or an optax transformation.
    batch_size
        Number of samples in a batch.
    weighted
        Whether the loss follows the weights of samples.
    stratified
        Whether each batch has one sample of every run of neighbours.
    sharding
        Division of a batch among devices.
    """

    training: nnx.GraphDef[Any]
    evaluation: nnx.GraphDef[Any]
    layout: Layout
    wrt: Any
    loss: Loss
    optimizer: AdamPlan | optax.GradientTransformation
    batch_size: int
    weighted: bool
    stratified: bool
    sharding: jax.sharding.Sharding | None


class Variables(NamedTuple):
    """What training changes; the trained parameters as vectors."""

    trained: Vectors
    other: nnx.State
    optimizer: Any

    @property
    def judged(self) -> tuple[Vectors, nnx.State]:
        """What validation looks at and the operator is given: averaged weights, where an average is kept."""
        average = self.optimizer.average if isinstance(self.optimizer, AdamState) else {}
        return average or self.trained, self.other

    def exchanged(self) -> Variables:
        """The same with the average in the place of the weights and the other way round, where one is kept."""
        optimizer = self.optimizer
        if not isinstance(optimizer, AdamState) or not optimizer.average:
            return self
        return Variables(optimizer.average, self.other, optimizer._replace(average=self.trained))

    def back_at(self, judged: tuple[Vectors, nnx.State]) -> Variables:
        """Go on from what was judged before; an average of the weights begins there too."""
        trained, optimizer = judged[0], self.optimizer
        if isinstance(optimizer, AdamState) and optimizer.average:
            optimizer = optimizer._replace(average=trained)
        return Variables(trained, judged[1], optimizer)


class Failures(NamedTuple):
    """Steps that were skipped because loss or gradient was not finite.

    Attributes
    ----------
    count
        Their number in this epoch.
    in_a_row
        Length of the current run of them.
    last_loss
        Loss of the latest.
    """

    count: Int[Array, ""]
    in_a_row: Int[Array, ""]
    last_loss: Float[Array, ""]

    @classmethod
    def none(cls) -> Failures:
        """Return the state before any step."""
        return cls(np.int32(0), np.int32(0), np.float32(0))  # type: ignore[arg-type]


def number_of_steps(samples: Any, batch_size: int, *, weighted: bool) -> Any:
    """Steps of an epoch: a weighted loss sees every sample, in a short last batch; one without, full batches only."""
    return -(-samples // batch_size) if weighted else samples // batch_size


@jit_quickly(static_argnames=("plan",), donate_argnames=("variables",))
def run_epoch(
    plan: Plan,
    variables: Variables,
    failures: Failures,
    data: batches.SampleSet,
    epoch: Int[Array, ""],
    paces: Float[Array, " steps"],
    order_key: Array,
    loss_key: Array,
    trains: Bool[Array, ""],
) -> tuple[Variables, Failures, dict[str, Array], Float[Array, ""]]:
    """Take one step for each batch; average loss and terms over the samples of the finite steps, and count these.

    Without ``trains`` no step changes anything, the average is over all samples, and the keys are the same every time.

    Parameters
    ----------
    plan
        What is compiled.
    variables
        Given away: their arrays are gone after the call.
    failures
        Skipped steps so far.
    data
        Samples.
    epoch
        Number of the epoch, or of the part of the data, counted through all epochs.
    paces
        What the learning rates are multiplied by in each step.
    order_key, loss_key
        Random keys of the order of the samples and of the loss.
    trains
        Whether steps change anything.
    """
    failures = failures._replace(count=jnp.int32(0))
    bucket = data.index.shape[0]
    order = _order(plan, jax.random.fold_in(order_key, epoch), data.size, bucket, plan.batch_size)
    epoch_key = jax.random.fold_in(loss_key, jnp.where(trains, jnp.uint32(epoch), _EVALUATION))
    # The number of steps is data, not a shape: a loop over the whole bucket would run empty batches at its end.
    steps = number_of_steps(data.size, plan.batch_size, weighted=plan.weighted)

    @jax.jit
    def step(variables: Variables, failures: Failures, number: Array) -> Any:
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
        variables = _take_step(plan, variables, gradient, other, paces[number], finite & trains)
        failures = Failures(
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
        return (number < steps) & ((failures.in_a_row < MOST_NONFINITE_STEPS) | ~trains)

    shapes = jax.eval_shape(step, variables, failures, jnp.int32(0))[2]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    carry = (jnp.int32(0), variables, failures, zeros, jnp.float32(0))
    _, variables, failures, totals, total_weight = jax.lax.while_loop(goes_on, body, carry)
    # Without a finite step this is 0 / 0: the epoch has no loss.
    return variables, failures, {name: total / total_weight for name, total in totals.items()}, total_weight


def evaluate(
    plan: Plan, states: tuple[Vectors, nnx.State], data: batches.SampleSet, loss_key: Array
) -> dict[str, Array]:
    """Average loss and terms over all samples. Every call draws the same keys, so that epochs are comparable."""
    batch_size, remainder = plan.batch_size, 0
    if not plan.weighted:  # weights fill up the last batch; without them it is a shorter one
        batch_size = min(plan.batch_size, data.size)
        remainder = data.size % batch_size
    return _evaluate(plan, *states, data, loss_key, batch_size=batch_size, remainder=remainder)


@jit_quickly(static_argnames=("plan", "batch_size", "remainder"))
def _evaluate(
    plan: Plan,
    vectors: Vectors,
    other: nnx.State,
    data: batches.SampleSet,
    loss_key: Array,
    *,
    batch_size: int,
    remainder: int,
) -> dict[str, Array]:
    size, trained = jnp.asarray(data.size), plan.layout.split(vectors)
    # In the order of the samples, unless only mixed batches have room for their entries.
    bucket = data.index.shape[0]
    order = _order(plan, loss_key, size, bucket, batch_size) if plan.stratified else jnp.arange(bucket)
    steps = number_of_steps(size, batch_size, weighted=plan.weighted)

    def summed(number: Array, taken: int) -> dict[str, Array]:
        batch, count = batches.take_batch(
            data.samples, data.shared, data.index, order, number * batch_size, taken, size,
            weighted=plan.weighted, sharding=plan.sharding, divided=taken == plan.batch_size,
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


def copied(tree: Any) -> Any:
    """Copies of arrays where they are, without a compiled program if they are all of this process."""
    if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return _copied(tree)
    # Said where: random keys would else forget that somebody put them there.
    return jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding, tree), may_alias=False)


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _order(plan: Plan, key: Array, size: Any, bucket: int, batch_size: int) -> Int[Array, " bucket"]:
    if plan.stratified:
        return stratified_order(key, size, bucket, batch_size)
    if batch_size >= bucket:
        # All samples are one batch, whose order is nothing: sorting takes half a second to compile.
        return jnp.arange(bucket)
    return batches.epoch_order(key, size, bucket)


def _take_step(
    plan: Plan, variables: Variables, gradient: Vectors, other: nnx.State, pace: Array, applies: Bool[Array, ""]
) -> Variables:
    """Variables after a step; as before it unless it ``applies``."""

    def chosen(new: Any, old: Any) -> Any:
        # What the loss has left alone is the same array, and needs no choice.
        return jax.tree.map(lambda new, old: old if new is old else jnp.where(applies, new, old), new, old)

    other = chosen(other, variables.other)
    if isinstance(plan.optimizer, AdamPlan):
        stepped, state = adam_step(
            plan.optimizer, plan.layout, variables.trained, gradient, variables.optimizer, pace, applies
        )
        return Variables(stepped, other, state)
    trained = plan.layout.split(variables.trained)
    change, state = plan.optimizer.update(plan.layout.split(gradient), variables.optimizer, trained)
    moved = plan.layout.join(optax.apply_updates(trained, change), library=jnp)
    return Variables(chosen(moved, variables.trained), other, chosen(state, variables.optimizer))


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
