"""The one training loop: epochs, validation, stopping, checkpoints; it knows no operator but what it can be asked."""

from __future__ import annotations

import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc._checks import whole_number
from diffbio_sc._compiled import one_thread_at_a_time, release_memory
from diffbio_sc._progress import progress
from diffbio_sc._random import as_generator
from diffbio_sc.numerics.random_keys import divided_keys
from diffbio_sc.training import batches
from diffbio_sc.training import validation as validating
from diffbio_sc.training.checkpoint import (
    Checkpoint,
    as_trees,
    from_trees,
    on_host,
    read_checkpoint,
    write_checkpoint,
)
from diffbio_sc.training.devices import Placement, bring_home, home_of, place_training
from diffbio_sc.training.epoch import (
    MOST_NONFINITE_STEPS,
    Failures,
    Loss,
    Plan,
    Variables,
    copied,
    evaluate,
    number_of_steps,
    run_epoch,
)
from diffbio_sc.training.optimizers import Adam
from diffbio_sc.training.report import FitReport
from diffbio_sc.training.sources import EpochSource, Resident, Streamed
from diffbio_sc.training.stopping import EarlyStopping
from diffbio_sc.training.streams import BatchSource
from diffbio_sc.training.trainable import Trainable
from diffbio_sc.training.validation import Validation
from diffbio_sc.training.vectors import Layout, Vectors

__all__ = ["Loss", "train"]

_LARGE = 1 << 26  # bytes of dense samples from which the compiler's memory matters beside theirs
# Batches of an evaluation up to which it runs the code of an epoch. A program of its own takes one to two seconds to
# compile and saves two thirds of the time of each of its steps (`benchmarks/training.py passes`): four steps of the
# multi-omics VAE have earned that after fifty to a hundred epochs.
_FEW_BATCHES = 3
_NOISE = 1e-3  # share of the held-out loss by which it may rise in an epoch that is not taken back


@one_thread_at_a_time
def train(
    operator: Trainable,
    data: Mapping[str, Any] | BatchSource,
    *,
    loss: Loss | None = None,
    weighted: bool | None = None,
    sample_keys: Collection[str] | None = None,
    optimizer: Adam | optax.GradientTransformation | None = None,
    learning_rate: float | Callable[[Any], Any] = 1e-3,
    wrt: Any = nnx.Param,
    batch_size: int | None = 128,
    stratified: bool = False,
    max_epochs: int = 100,
    rng: int | np.random.Generator | Array | None = 0,
    validation: Validation | None = None,
    patience: int | None = None,
    keep_start: bool = False,
    backtracks: bool = False,
    min_progress: float = 0.0,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    description: str = "training",
) -> FitReport:
    """Lower a loss over minibatches by gradient descent, changing ``operator`` in place.

    Parameters
    ----------
    operator
        Operator to train; left in evaluation mode (``operator.eval()``).
    data
        Arrays by name, held on the devices for the whole run; sparse ones as
        :class:`~diffbio_sc.training.batches.Samples`, of which a batch has the entries. Or a
        :class:`~diffbio_sc.training.BatchSource`, which gives them part by part in each epoch: two or three parts
        are in memory at a time.
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
        :class:`~diffbio_sc.training.optimizers.Adam`, the default and the fastest, with rates by part, schedules,
        clipping and averaged weights; or any optax transformation: pass the same object again to find compiled code
        again.
    learning_rate
        Learning rate of the default optimiser, a number or a schedule as optax has them.
    wrt
        nnx filter of the variables to train.
    batch_size
        Number of samples in each step; None takes all at once (of a source, all of a part). At most the number of
        samples.
    stratified
        Whether each batch has one sample of every run of neighbours, as
        :func:`~diffbio_sc.numerics.counts.sparse_rows.stratified_order` says: for samples in the order of their
        entries.
    max_epochs
        Largest number of passes through the data.
    rng
        Seed, numpy generator or JAX key of the order of samples, the validation split and the loss's keys.
    validation
        Samples on which the loss is followed after each epoch: a share of ``data`` to hold out, the rows of ``data`` to
        hold out, or data of its own (a dict; arrays without sample axis may be left out). Of a source only the latter.
    patience
        Number of epochs in which the validation loss (the training loss, if there is no validation) does not fall,
        after which to stop. Default: never.
    keep_start
        Whether the parameters at the start count as an epoch for validation: they are given back if no epoch is better.
    backtracks
        Whether an epoch after which the validation loss is above the lowest by more than a thousandth of it was a step
        too far: its parameters go back to those of the lowest loss, and all later learning rates of ``Adam`` are
        halved. The history then has ``taken_back``, and of such an epoch the validation losses of what was kept.
    min_progress
        Share of the watched loss by which it has to fall for patience to begin anew; the parameters kept are those of
        the lowest loss in any case.
    checkpoint
        File to keep the state of the run in, from which a run that was cut off goes on; or a
        :class:`~diffbio_sc.training.checkpoint.Checkpoint`, which also says how often. Of several hosts the first
        writes it, and all must see it.
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
        After five steps in a row with a loss or gradient that is not finite; the operator keeps the last finite
        parameters. A single such step changes nothing.
    KeyError, TypeError, ValueError
        If data, options or checkpoint do not fit.

    Notes
    -----
    Samples are visited in the order ``training.batches.epoch_order`` gives (``stratified``: ``stratified_order``), anew
    in each epoch. A weighted loss sees every sample once an epoch: the last batch is filled up with samples of weight
    0. A loss without weights cannot tell those apart, so that an epoch has only the full batches and leaves out the few
    samples at the end of its order. Validation always covers every sample.

    A second call compiles nothing if operator configuration, loss, optimiser, options and the shapes are the same; the
    learning rates and schedule of ``Adam`` may be others. The number of samples may then be another within the bucket
    (an eighth, :func:`~diffbio_sc.numerics.padding.bucket_size`), except that a loss without weights compiles for each
    batch larger than the data and each remainder of validation samples.

    With several visible devices the samples are divided among them, and each batch; the result is the same up to
    rounding. So it is with several hosts: start ``jax.distributed`` and call with the same data and ``rng`` on each. If
    the devices do not divide a batch equally, some of them are not used; the log says how many.

    Examples
    --------
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> import diffbio_sc as dbio
    >>> from diffbio_sc.operators import Operator, OperatorConfig
    >>> class Line(Operator):
    ...     required_keys = ("x", "y")
    ...
    ...     def __init__(self, config, *, rngs):
    ...         super().__init__(config, rngs=rngs)
    ...         self.slope = nnx.Param(jnp.zeros(()))
    ...
    ...     def loss(self, data):
    ...         return jnp.mean((self.slope * data["x"] - data["y"]) ** 2)
    >>> x = jnp.linspace(-1, 1, 64)
    >>> line = Line(OperatorConfig(), rngs=nnx.Rngs(0))
    >>> report = dbio.training.train(line, {"x": x, "y": 3 * x}, learning_rate=0.1, batch_size=16, max_epochs=50)
    >>> round(float(line.slope[...]), 1)
    3.0
    """
    started = time.perf_counter()
    max_epochs = whole_number(max_epochs, "max_epochs")
    batch_size = None if batch_size is None else whole_number(batch_size, "batch_size")
    patience = None if patience is None else whole_number(patience, "patience")
    weighted = (loss is None and operator.loss_takes_weights) if weighted is None else weighted
    seed_key, (split_key, order_key, loss_key) = divided_keys(_as_seed(rng), 3)
    if isinstance(data, BatchSource):
        size = data.size
        parts = validating.only_own(validation)
    else:
        if loss is None:
            operator.check_keys(data)
        size = batches.count_samples(data, sample_keys, name="data")
        parts = validating.split(validation, size, split_key)
    if keep_start and parts.own is None and not len(parts.held_out):
        raise ValueError("keep_start compares with the start on held-out samples: give validation=0.1, for example.")
    most = data.part_rows if isinstance(data, BatchSource) else len(parts.rows)
    largest = validating.largest_batch(min(size, most), weighted=weighted)
    batch_size = largest if batch_size is None else min(batch_size, largest)
    placement = place_training(batch_size)
    epochs_of: EpochSource
    is_large = False
    if isinstance(data, BatchSource):
        data.begin(batch_size, stratified=stratified)
        epochs_of = Streamed(data, placement, operator.check_keys if loss is None else None)
        validation_set = None if parts.own is None else epochs_of.held_out(parts.own)
    else:
        placed = functools.partial(validating.place, data, sample_keys, size, parts, placement=placement)
        is_large = batches.dense_bytes(data) >= _LARGE
        training_set, validation_set = placed(blank=is_large)
        epochs_of = Resident(training_set)

    optimizer = Adam(learning_rate) if optimizer is None else optimizer
    plan, variables, home = _prepared(
        operator, _operator_loss if loss is None else loss, optimizer, wrt, batch_size, weighted, stratified, placement
    )
    watches = validation_set is not None or patience is not None
    run = _Run(plan, optimizer, placement, order_key, loss_key, epochs_of, validation_set)
    # An operator that does the same in training and evaluation is compiled once, if evaluations are short: their steps
    # are those of an epoch without their effect. That costs a gradient that is not used, which many samples feel more
    # than compiling a second program.
    fits = epochs_of.fits(validation_set)
    few = validation_set is not None and validation_set.size <= _FEW_BATCHES * batch_size
    run.shares_code = weighted and fits and few and plan.training == plan.evaluation
    if is_large:
        # The compiler's memory is given back before the samples take theirs.
        variables = run.compile(variables)
        release_memory()
        del epochs_of, training_set
        training_set, validation_set = placed()
        run.source, run.validation_set = Resident(training_set), validation_set

    stopping = EarlyStopping(patience, min_progress=min_progress)
    history: dict[str, list[float]] = {}
    best: tuple[Vectors, nnx.State] | None = None
    kept_losses: dict[str, float] = {}
    first_epoch, seconds_before = 0, 0.0
    store = Checkpoint.of(checkpoint)
    identity = {
        **operator.identity(),
        "samples": size,
        "data": None
        if store is None
        else data.identity()
        if isinstance(data, BatchSource)
        else batches.fingerprint(data),
        "validation_samples": 0 if validation_set is None else validation_set.size,
        "batch_size": batch_size,
        "weighted": weighted,
        "random_key": np.asarray(jax.random.key_data(seed_key)).tolist(),
    }
    if store is not None and store.resume and os.path.exists(store.path):
        templates = as_trees(plan.layout, variables, variables.judged if watches else None)
        found, trees = read_checkpoint(store.path, identity, templates)
        variables, best = placement.put(from_trees(plan.layout, trees))
        variables = copied(variables)
        history, first_epoch, seconds_before = found["history"], found["epochs"], found["seconds"]
        stopping.best, stopping.waited, stopping.reference = found["stopping"]

    def elapsed() -> float:
        return seconds_before + time.perf_counter() - started

    if keep_start and first_epoch == 0:
        variables, kept_losses = run.validate(variables)
        if stopping.update(kept_losses["validation_loss"]):
            best = copied(variables.judged)
        stopping.waited = 0
    epochs = first_epoch
    for epoch in progress(range(first_epoch, max_epochs), description):
        if stopping.stops:
            break
        pace = 0.5 ** sum(history.get("taken_back", []))
        variables, record, skipped_now = run.train(variables, epoch, pace)
        in_a_row = int(run.failures.in_a_row)
        if in_a_row >= MOST_NONFINITE_STEPS:
            _put_back(operator, plan.layout, variables.judged, home)
            raise FloatingPointError(_nonfinite_message(in_a_row, epoch, float(run.failures.last_loss)))
        if validation_set is not None:
            variables, found = run.validate(variables)
            if backtracks:
                rises = best is not None and not found["validation_loss"] <= stopping.best + _NOISE * abs(stopping.best)
                if rises and best is not None:
                    variables = copied(variables.back_at(best))
                    found = kept_losses or found
                elif found["validation_loss"] < stopping.best:
                    kept_losses = found
                record["taken_back"] = float(rises)
            record |= found
        record["nonfinite_steps"] = skipped_now
        for name, value in record.items():
            history.setdefault(name, []).append(value)
        epochs = epoch + 1
        if stopping.update(record["loss" if validation_set is None else "validation_loss"]) and watches:
            best = copied(variables.judged)
        if store is not None and (epochs % store.every == 0 or epochs == max_epochs or stopping.stops):
            state = {
                "epochs": epochs,
                "history": history,
                "seconds": elapsed(),
                "stopping": [stopping.best, stopping.waited, stopping.reference],
            }
            kept = (variables.judged if best is None else best) if watches else None
            if jax.process_index() == 0:
                write_checkpoint(store.path, identity, state, as_trees(plan.layout, variables, kept))

    skipped = int(sum(history["nonfinite_steps"]))
    if skipped:
        warnings.warn(
            f"{skipped} training steps of {type(operator).__name__} had a loss or gradient that was not finite and "
            "were skipped; history['nonfinite_steps'] tells the epochs.",
            RuntimeWarning,
            stacklevel=3,
        )
    found_best = best if watches and math.isfinite(stopping.best) else None
    _put_back(operator, plan.layout, variables.judged if found_best is None else found_best, home)
    operator.mark_fitted()
    curves = {name: np.asarray(values, np.float64) for name, values in history.items()}
    return FitReport(curves, stopping.stops, epochs, elapsed())


class _Run:
    """Epochs and evaluations of one run: all that stays the same from one to the next."""

    def __init__(
        self,
        plan: Plan,
        optimizer: Any,
        placement: Placement,
        order_key: Array,
        loss_key: Array,
        source: EpochSource,
        validation_set: batches.SampleSet | None,
    ):
        self.plan, self.optimizer, self.placement = plan, optimizer, placement
        self.order_key, self.loss_key = placement.put((order_key, loss_key))
        self.source, self.validation_set = source, validation_set
        self.failures = placement.put(Failures.none())
        self.shares_code = False
        # As many as a data set of the bucket has.
        self.most_steps = number_of_steps(source.bucket, plan.batch_size, weighted=True)

    def train(self, variables: Variables, epoch: int, pace: float) -> tuple[Variables, dict[str, float], int]:
        """Go once through the training samples, at ``pace`` times the learning rates of ``Adam``.

        Returns
        -------
        Variables, averages over the epoch, and the number of steps that were skipped.
        """
        plan, source = self.plan, self.source
        done = epoch * source.steps(plan.batch_size, weighted=plan.weighted)
        records, weights, skipped = [], [], 0
        for number, part in enumerate(source.parts(epoch)):
            paces = np.ones(self.most_steps, np.float32)
            if isinstance(self.optimizer, Adam):
                paces = self.optimizer.paces(done, self.most_steps) * np.float32(pace)
            variables, self.failures, averages, weight = run_epoch(
                plan, variables, self.failures, part, epoch * source.n_parts + number, paces,
                self.order_key, self.loss_key, True,
            )  # fmt: skip
            done += number_of_steps(part.size, plan.batch_size, weighted=plan.weighted)
            records.append({name: float(value) for name, value in averages.items()})
            weights.append(float(weight))
            skipped += int(self.failures.count)
            if int(self.failures.in_a_row) >= MOST_NONFINITE_STEPS:
                break
        return variables, _averaged(records, weights), skipped

    def compile(self, variables: Variables) -> Variables:
        """Compile what an epoch needs, by one without samples; the variables are given back as they were."""
        for part in self.source.parts(0):
            paces = np.ones(self.most_steps, np.float32)
            variables = run_epoch(
                self.plan, variables, self.placement.put(Failures.none()), part._replace(size=0), 0, paces,
                self.order_key, self.loss_key, False,
            )[0]  # fmt: skip
        return jax.block_until_ready(variables)

    def validate(self, variables: Variables) -> tuple[Variables, dict[str, float]]:
        """Look at the held-out samples; the variables are given back as they were, perhaps in other arrays."""
        assert self.validation_set is not None
        if not self.shares_code:
            averages = evaluate(self.plan, variables.judged, self.validation_set, self.loss_key)
        else:
            # An evaluation changes nothing: it is given the average in the place of the weights, and they change back.
            none = self.placement.put(Failures.none())
            paces = np.ones(self.most_steps, np.float32)
            seen, _, averages, _ = run_epoch(
                self.plan, variables.exchanged(), none, self.validation_set, 0, paces, self.order_key, self.loss_key,
                False,
            )  # fmt: skip
            variables = seen.exchanged()
        return variables, {f"validation_{name}": float(value) for name, value in averages.items()}


def _averaged(records: list[dict[str, float]], weights: list[float]) -> dict[str, float]:
    """Averages over the parts of an epoch, each by its samples; those of the one part as they are."""
    if len(records) == 1:
        return records[0]
    counted = [(record, weight) for record, weight in zip(records, weights, strict=True) if weight > 0]
    total = sum(weight for _, weight in counted)
    return {
        name: sum(record[name] * weight for record, weight in counted) / total if total else math.nan
        for name in records[0]
    }


def _prepared(
    operator: Trainable,
    loss: Loss,
    optimizer: Adam | optax.GradientTransformation,
    wrt: Any,
    batch_size: int,
    weighted: bool,
    stratified: bool,
    placement: Placement,
) -> tuple[Plan, Variables, Any]:
    """What is compiled, the variables on the device, and where the operator has them."""
    wrt = tuple(wrt) if isinstance(wrt, list) else wrt
    operator.eval()
    evaluation = nnx.graphdef(operator)
    operator.train()
    training, *states = nnx.split(operator, wrt, ...)
    operator.eval()
    trained, other = jax.tree.map(_strongly_typed, states)
    if not jax.tree.leaves(trained):
        raise ValueError(f"{type(operator).__name__} has no variables that wrt={wrt!r} selects: nothing to train.")
    layout = Layout.of(trained)
    plan = Plan(
        training, evaluation, layout, wrt, loss,
        optimizer.plan(trained) if isinstance(optimizer, Adam) else optimizer,
        batch_size, weighted, stratified, placement.batch,
    )  # fmt: skip
    # The epoch gives its variables away; the operator's own arrays may be shared with clones of it, so they are copied.
    home = jax.tree.map(home_of, (trained, other))
    variables = Variables(layout.join(trained, library=np), other, optimizer.init(trained))
    return plan, copied(placement.put(variables)), home


def _put_back(operator: Trainable, layout: Layout, states: tuple[Vectors, nnx.State], home: tuple[Any, Any]) -> None:
    """Give the operator its variables, on the devices where they were."""
    for state, shardings in zip((on_host(layout, states[0]), states[1]), home, strict=True):
        nnx.update(operator, jax.tree.map(bring_home, state, shardings))


def _operator_loss(operator: Trainable, batch: dict[str, Array], key: Array) -> Float[Array, ""]:
    return operator.loss(batch)


def _strongly_typed(leaf: Any) -> Array:
    """The array with a type of its own: an epoch returns such, and would be compiled again for others."""
    array = jnp.asarray(leaf)
    return jnp.asarray(array, dtype=array.dtype)


def _as_seed(rng: int | np.random.Generator | np.random.RandomState | Array | None) -> int | Array:
    if isinstance(rng, jax.Array):
        if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) or rng.shape != ():
            raise TypeError(f"rng must be a seed, a numpy Generator or one jax.random.key, found {rng!r}.")
        return rng
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0:
        return int(rng)
    return int(as_generator(rng).integers(2**31))


def _nonfinite_message(steps: int, epoch: int, loss: float) -> str:
    what = "its gradient is not finite" if math.isfinite(loss) else "the loss itself is not finite"
    return (
        f"training stopped in epoch {epoch + 1} after {steps} steps in a row without a finite gradient: the loss was "
        f"{loss:g}, {what}. The operator keeps its last finite parameters. Look for NaN or extreme values in the data, "
        "lower the learning rate, or clip gradients: optimizer=Adam(learning_rate, clip=1.0)."
    )
