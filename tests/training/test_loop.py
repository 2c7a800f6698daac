"""The training loop, on a linear regression: against least squares and gradient descent in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from no_warnings import no_warnings

from diffbio_sc.operators import NotFittedWarning
from diffbio_sc.training import Adam, Checkpoint, batches, loop, train
from diffbio_sc.training.batches import epoch_order
from diffbio_sc.training.epoch import Variables

SGD = optax.sgd(0.05)


def unweighted_loss(operator, batch, key):
    return jnp.mean((operator(batch)["predicted"] - batch["targets"]) ** 2)


def least_squares(data):
    design = np.column_stack([data["features"], np.ones(len(data["targets"]))]).astype(float)
    solution = np.linalg.lstsq(design, data["targets"].astype(float), rcond=None)[0]
    return solution, ((design @ solution - data["targets"]) ** 2).mean()


def parameters(operator):
    return np.append(np.asarray(operator.weights[...]), np.asarray(operator.intercept[...]))


def numpy_epoch(data, start, batches, learning_rate):
    """Gradient steps on the given rows; parameters and the sample average of the losses before each step."""
    design = np.column_stack([data["features"], np.ones(len(data["targets"]))]).astype(float)
    solution, losses = np.array(start, float), []
    for rows in batches:
        residual = design[rows] @ solution - data["targets"][rows]
        losses += [(residual**2).mean()] * len(rows)
        solution = solution - learning_rate * 2 * design[rows].T @ residual / len(rows)
    return solution, np.mean(losses)


def documented_order(seed, epoch, size, bucket):
    order_key = jax.random.split(jax.random.key(seed), 3)[1]
    return np.asarray(epoch_order(jax.random.fold_in(order_key, epoch), size, bucket))[:size]


# --- what an epoch does


def test_parameters_are_as_free_as_before_so_that_programs_that_take_them_stay_compiled(make_linear, make_data):
    free, placed = make_linear(), make_linear()
    device = jax.devices()[-1]
    placed.weights[...] = jax.device_put(placed.weights[...], device)
    for operator in (free, placed):
        train(operator, make_data(21), optimizer=SGD, batch_size=8, max_epochs=1)
    assert not free.weights[...].committed
    assert placed.weights[...].committed
    assert placed.weights[...].devices() == {device}
    np.testing.assert_array_equal(free.weights[...], placed.weights[...])


def test_weighted_epochs_equal_numpy_with_a_short_last_batch(make_linear, make_data):
    data, operator = make_data(21), make_linear()
    report = train(operator, data, optimizer=SGD, batch_size=8, max_epochs=2, rng=7)
    expected, losses = np.zeros(4), []
    for epoch in range(2):
        order = documented_order(7, epoch, 21, 22)
        expected, loss = numpy_epoch(data, expected, [order[:8], order[8:16], order[16:]], 0.05)
        losses.append(loss)
    np.testing.assert_allclose(parameters(operator), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(report.history["loss"], losses, rtol=1e-5)
    assert report.steps == 2
    assert not report.converged


def test_epochs_of_a_loss_without_weights_have_only_full_batches(make_linear, make_data):
    data, operator = make_data(21), make_linear()
    report = train(operator, data, loss=unweighted_loss, optimizer=SGD, batch_size=8, max_epochs=1, rng=7)
    order = documented_order(7, 0, 21, 22)
    expected, loss = numpy_epoch(data, np.zeros(4), [order[:8], order[8:16]], 0.05)
    np.testing.assert_allclose(parameters(operator), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(report.history["loss"], [loss], rtol=1e-5)


@pytest.mark.parametrize("loss", [None, unweighted_loss])
@pytest.mark.parametrize("batch_size", [None, 1000])
def test_the_whole_data_may_be_one_batch(make_linear, make_data, loss, batch_size):
    data, operator = make_data(37), make_linear()
    train(operator, data, loss=loss, optimizer=SGD, batch_size=batch_size, max_epochs=1)
    expected, _ = numpy_epoch(data, np.zeros(4), [np.arange(37)], 0.05)
    np.testing.assert_allclose(parameters(operator), expected, rtol=1e-5, atol=1e-6)


def test_minibatches_reach_least_squares_under_a_schedule(make_linear, make_data):
    data, operator = make_data(200), make_linear()
    schedule = optax.exponential_decay(0.1, 30, 0.9)
    train(operator, data, learning_rate=schedule, batch_size=32, max_epochs=200)
    np.testing.assert_allclose(parameters(operator), least_squares(data)[0], atol=3e-3)


def test_sample_weights_of_the_data_give_weighted_least_squares(make_linear, make_data):
    data, operator = make_data(60, noise=1.0), make_linear()
    weights = np.random.default_rng(1).uniform(0, 2, 60).astype(np.float32)
    train(operator, {**data, "sample_weight": weights}, optimizer=SGD, batch_size=None, max_epochs=1000)
    design = np.column_stack([data["features"], np.ones(60)]).astype(float)
    root = np.sqrt(weights)
    expected = np.linalg.lstsq(design * root[:, None], data["targets"] * root, rcond=None)[0]
    np.testing.assert_allclose(parameters(operator), expected, atol=1e-4)


def test_any_optax_transformation_is_followed(make_linear, make_data):
    data, operator = make_data(30), make_linear()
    clipped = optax.chain(optax.clip_by_global_norm(0.25), optax.sgd(1.0))
    train(operator, data, optimizer=clipped, batch_size=None, max_epochs=1)
    assert np.linalg.norm(parameters(operator)) == pytest.approx(0.25, rel=1e-5)
    residual = -data["targets"].astype(float)
    direction = -2 * np.append(data["features"].T @ residual, residual.sum())
    np.testing.assert_allclose(parameters(operator), 0.25 * direction / np.linalg.norm(direction), rtol=1e-4)


def test_only_the_selected_variables_are_trained(make_linear, make_data):
    operator = make_linear()
    only_intercept = nnx.PathContains("intercept")
    train(operator, make_data(), wrt=only_intercept, max_epochs=2)
    np.testing.assert_array_equal(operator.weights[...], 0)
    assert operator.intercept[...] != 0
    with pytest.raises(ValueError, match="Linear has no variables that wrt=.* selects"):
        train(operator, make_data(), wrt=nnx.BatchStat)


def test_arrays_without_sample_axis_reach_every_batch_whole(make_linear, make_data):
    data, operator = make_data(21), make_linear()
    data["shift"] = np.array([1.0, 2.0, 3.0, 4.0], np.float32)

    def loss(operator, batch, key):
        assert batch["shift"].shape == (4,)
        assert batch["features"].shape == (8, 3)
        return jnp.mean((operator(batch)["predicted"] - batch["targets"] - batch["shift"].sum()) ** 2)

    train(
        operator, data, loss=loss, sample_keys=["features", "targets"], learning_rate=0.1, batch_size=8, max_epochs=200
    )
    np.testing.assert_allclose(parameters(operator), least_squares(data)[0] + [0, 0, 0, 10], atol=0.05)


def test_a_loss_may_record_its_terms_and_draws_fresh_keys(make_linear, make_data):
    def loss(operator, batch, key):
        fit = unweighted_loss(operator, batch, key)
        penalty = jnp.sum(operator.weights[...] ** 2)
        return fit + 0.1 * penalty, {"fit": fit, "penalty": penalty, "draw": jax.random.uniform(key)}

    report = train(make_linear(), make_data(), loss=loss, batch_size=16, max_epochs=5, validation=0.2)
    names = {"loss", "fit", "penalty", "draw"}
    assert set(report.history) == names | {f"validation_{name}" for name in names} | {"nonfinite_steps"}
    assert all(curve.shape == (5,) for curve in report.history.values())
    np.testing.assert_allclose(
        report.history["loss"], report.history["fit"] + 0.1 * report.history["penalty"], rtol=1e-5
    )
    assert len(set(report.history["draw"])) == 5
    # Validation draws the same keys in every epoch, so that epochs can be compared.
    assert len(set(report.history["validation_draw"])) == 1


def test_losses_that_are_no_scalar_or_reuse_a_name_are_refused(make_linear, make_data):
    with pytest.raises(ValueError, match=r"must return scalars: 'loss' has shape \(50,\)"):
        train(make_linear(), make_data(), loss=lambda operator, batch, key: batch["targets"], max_epochs=1)
    with pytest.raises(ValueError, match=r"must not name its terms \['loss'\]"):
        train(make_linear(), make_data(), loss=lambda operator, batch, key: (0.0, {"loss": 0.0}), max_epochs=1)


# --- randomness


def test_a_seed_repeats_bit_for_bit_and_another_differs(make_linear, make_data):
    def trained(rng):
        operator = make_linear(dropout=0.2)
        train(operator, make_data(), batch_size=8, max_epochs=3, rng=rng)
        return parameters(operator)

    np.testing.assert_array_equal(trained(3), trained(3))
    np.testing.assert_array_equal(trained(3), trained(jax.random.key(3)))
    np.testing.assert_array_equal(trained(np.random.default_rng(3)), trained(np.random.default_rng(3)))
    assert not np.array_equal(trained(3), trained(4))
    with pytest.raises(TypeError, match="rng must be a seed"):
        trained(1.5)
    with pytest.raises(TypeError, match="one jax.random.key"):
        trained(jax.numpy.zeros(2))
    with pytest.raises(ValueError, match="rng must be a whole number of at least 0, found -1"):
        trained(-1)


def test_dropout_is_on_in_training_and_off_afterwards(make_linear, make_data):
    data = make_data(noise=0.0)
    operator = make_linear(dropout=0.2)
    report = train(operator, data, validation=data, learning_rate=0.05, max_epochs=100)
    # At the optimum, 0.8 of the true weights, the expected losses are 0.2 and 0.04 of their squared length.
    assert report.history["loss"][-1] > 2 * report.history["validation_loss"][-1]
    first, second = (operator.apply(data, {}, None)[0]["predicted"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_training_marks_a_network_as_fitted(make_linear, make_data):
    operator = make_linear()
    with pytest.warns(NotFittedWarning):
        operator.apply(make_data(), {}, None)
    train(operator, make_data(), max_epochs=1)
    with no_warnings():
        operator.apply(make_data(), {}, None)


def test_clones_and_their_arrays_survive_training(make_linear, make_data):
    operator = make_linear()
    clone = nnx.clone(operator)
    train(operator, make_data(), max_epochs=2)
    np.testing.assert_array_equal(parameters(clone), 0)
    assert not np.array_equal(parameters(operator), parameters(clone))


# --- validation and stopping


@pytest.mark.parametrize("loss", [None, unweighted_loss])
@pytest.mark.parametrize("size", [7, 8, 21])
def test_validation_covers_every_sample(make_linear, make_data, loss, size):
    operator, held_out = make_linear(), make_data(size, seed=5)
    report = train(operator, make_data(), loss=loss, validation=held_out, batch_size=8, max_epochs=1)
    predicted = held_out["features"].astype(float) @ parameters(operator)[:3] + parameters(operator)[3]
    expected = ((predicted - held_out["targets"]) ** 2).mean()
    assert report.history["validation_loss"][0] == pytest.approx(expected, rel=1e-5)


def test_held_out_samples_do_not_touch_the_parameters(make_linear, make_data):
    from diffbio_sc.training.batches import split_samples

    data = make_data(50)
    split_key = jax.random.split(jax.random.key(0), 3)[0]
    training, validation = split_samples(split_key, 50, 0.2)
    spoiled = {key: value.copy() for key, value in data.items()}
    spoiled["targets"][validation] += 100
    operators = [make_linear(), make_linear()]
    reports = [
        train(operator, one, validation=0.2, batch_size=16, max_epochs=1, rng=0)
        for operator, one in zip(operators, (data, spoiled), strict=True)
    ]
    np.testing.assert_array_equal(*map(parameters, operators))
    predicted = data["features"] @ parameters(operators[0])[:3] + parameters(operators[0])[3]
    for report, one in zip(reports, (data, spoiled), strict=True):
        expected = ((predicted - one["targets"])[validation] ** 2).mean()
        assert report.history["validation_loss"][0] == pytest.approx(expected, rel=1e-5)


def test_early_stopping_restores_the_parameters_of_the_best_epoch(make_linear, make_data):
    # Training moves to the least squares of the training data, past the best point of contrary validation data.
    data, held_out = make_data(50), make_data(50, seed=1)
    held_out["targets"] = 0.3 * held_out["targets"]
    operator = make_linear()
    report = train(operator, data, validation=held_out, optimizer=SGD, batch_size=None, max_epochs=500, patience=4)
    curve = report.history["validation_loss"]
    best = int(np.argmin(curve))
    assert report.converged
    assert 0 < best
    assert report.steps == len(curve) == best + 5
    again = make_linear()
    train(again, data, optimizer=SGD, batch_size=None, max_epochs=best + 1)
    np.testing.assert_array_equal(parameters(operator), parameters(again))


def test_patience_without_validation_watches_the_training_loss(make_linear, make_data):
    data, operator = make_data(), make_linear()
    report = train(operator, data, optimizer=SGD, batch_size=None, max_epochs=5000, patience=5)
    assert report.converged
    assert report.steps < 5000
    np.testing.assert_allclose(parameters(operator), least_squares(data)[0], atol=3e-3)


def test_an_evaluation_is_the_same_by_the_program_of_an_epoch_and_by_its_own(make_linear, make_data, monkeypatch):
    data, found = make_data(90), []
    for few in (0, 100):
        monkeypatch.setattr(loop, "_FEW_BATCHES", few)
        operator = make_linear()
        options = {"batch_size": 8, "max_epochs": 4, "rng": 3, "validation": 0.3}
        report = train(operator, data, optimizer=Adam(0.05, average=0.9), **options)
        found.append((report.history["validation_loss"], parameters(operator)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)


def test_large_samples_are_placed_after_compiling_and_change_nothing(make_linear, make_data, monkeypatch):
    data, options = make_data(90), {"batch_size": 8, "max_epochs": 4, "rng": 3, "validation": 0.3}
    expected, found, steps = make_linear(), make_linear(), []
    before = train(expected, data, **options)
    place, run_epoch = batches.place_samples, loop.run_epoch

    def placed(*arguments, blank=False, **more):
        steps.append("blank" if blank else "place")
        samples, shared = place(*arguments, blank=blank, **more)
        assert np.asarray(samples["features"]).any() != blank
        return samples, shared

    def run(plan, variables, failures, part, *more):
        steps.append(f"epoch of {part.size}")
        return run_epoch(plan, variables, failures, part, *more)

    monkeypatch.setattr(batches, "place_samples", placed)
    monkeypatch.setattr(loop, "run_epoch", run)
    monkeypatch.setattr(loop, "_LARGE", 0)
    monkeypatch.setattr(batches, "_CHUNK", 9)
    after = train(found, data, **options)
    assert steps[:4] == ["blank", "epoch of 0", "place", "epoch of 63"]
    np.testing.assert_array_equal(after.history["validation_loss"], before.history["validation_loss"])
    np.testing.assert_array_equal(parameters(found), parameters(expected))


# --- schedules and averaged weights


def test_a_schedule_is_followed_step_by_step(make_linear, make_data, compiled):
    """Against Adam of optax with the same schedule, on gradients in numpy; another schedule compiles nothing."""
    data, operator = make_data(20), make_linear()
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 12)
    train(operator, data, learning_rate=schedule, batch_size=8, max_epochs=4, rng=2)
    reference, expected = optax.adam(schedule), jnp.zeros(4)
    state = reference.init(expected)
    design = np.column_stack([data["features"], np.ones(20)]).astype(np.float32)
    for epoch in range(4):
        order = documented_order(2, epoch, 20, 20)
        for rows in (order[:8], order[8:16], order[16:]):
            residual = design[rows] @ expected - data["targets"][rows]
            change, state = reference.update(2 * design[rows].T @ residual / len(rows), state)
            expected = expected + change
    np.testing.assert_allclose(parameters(operator), expected, rtol=1e-4, atol=1e-6)
    options = {"batch_size": 8, "max_epochs": 2}
    train(make_linear(), data, optimizer=Adam(optax.constant_schedule(0.1)), **options)
    compiled()
    train(make_linear(), data, optimizer=Adam(optax.linear_schedule(0.1, 0.0, 9)), **options)
    assert "jit(run_epoch)" not in compiled()


@pytest.mark.parametrize("validation", [None, 0.2, "own"])
def test_averaged_weights_are_judged_and_given_back(make_linear, make_data, validation):
    """The average by its formula, over the weights that the same run has after each epoch."""
    data, held_out = make_data(24), make_data(10, seed=3)
    options = {"batch_size": None, "rng": 1, "validation": held_out if validation == "own" else validation}
    weights = [np.zeros(4)]
    for epochs in range(1, 6):
        operator = make_linear()
        train(operator, data, optimizer=Adam(0.1), max_epochs=epochs, **options)
        weights.append(parameters(operator))
    averaged = make_linear()
    report = train(averaged, data, optimizer=Adam(0.1, average=0.4), max_epochs=5, **options)
    expected = weights[0]
    for step, value in enumerate(weights[1:], start=1):
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(parameters(averaged), expected, rtol=1e-5, atol=1e-6)
    if validation == "own":
        residual = held_out["features"] @ expected[:3] + expected[3] - held_out["targets"]
        assert report.history["validation_loss"][-1] == pytest.approx((residual**2).mean(), rel=1e-4)


# --- losses that are not finite


def test_steps_that_are_not_finite_change_nothing_and_are_counted(make_linear, make_data):
    data = make_data(24)
    data["features"][5, 1] = np.nan
    operator = make_linear()
    with pytest.warns(RuntimeWarning, match="3 training steps of Linear .* were skipped"):
        report = train(operator, data, optimizer=SGD, batch_size=8, max_epochs=3, rng=2)
    expected, losses = np.zeros(4), []
    for epoch in range(3):
        rows = documented_order(2, epoch, 24, 24).reshape(3, 8)
        expected, loss = numpy_epoch(data, expected, [batch for batch in rows if 5 not in batch], 0.05)
        losses.append(loss)
    np.testing.assert_allclose(parameters(operator), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(report.history["loss"], losses, rtol=1e-5)
    np.testing.assert_array_equal(report.history["nonfinite_steps"], [1, 1, 1])


def test_steps_that_are_not_finite_in_a_row_end_with_advice_and_finite_parameters(make_linear, make_data):
    data, operator = make_data(40), make_linear()
    data["targets"][:] = np.inf
    with pytest.raises(FloatingPointError, match=r"epoch 2 after 5 steps in a row .* loss was inf.*Adam"):
        train(operator, data, batch_size=16, max_epochs=5)
    np.testing.assert_array_equal(parameters(operator), 0)


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_caught(make_linear, make_data):
    def loss(operator, batch, key):
        return jnp.sqrt(jnp.sum(operator.weights[...] ** 2))  # slope 0 / 0 at the start

    operator = make_linear()
    with pytest.raises(FloatingPointError, match="the loss was 0, its gradient is not finite"):
        train(operator, make_data(), loss=loss, batch_size=8)
    np.testing.assert_array_equal(parameters(operator), 0)


# --- compilation


@pytest.fixture
def compiled(caplog):
    """Names of the functions compiled since last asked."""

    def take():
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [message.split()[4] for message in messages if message.startswith("Finished XLA compilation of")]

    with jax.log_compiles():
        yield take


@pytest.mark.parametrize("validation", [{"validation": 0.3}, {"validation": None}])
def test_a_second_call_compiles_nothing_also_for_another_size_of_the_bucket(
    make_linear, make_data, compiled, validation
):
    options = {"batch_size": 16, "max_epochs": 3, "optimizer": Adam(1e-3, clip=5.0), **validation}
    train(make_linear(), make_data(100), **options)
    assert compiled().count("jit(run_epoch)") == 1
    for size in (100, 99, 98):
        operator, data = make_linear(), make_data(size, seed=size)
        compiled()
        train(operator, data, **options, rng=size)
        assert compiled() == [], size
    train(make_linear(), make_data(105), **options)
    assert compiled().count("jit(run_epoch)") == 1


def test_weakly_typed_variables_compile_no_second_epoch(make_linear, make_data, compiled):
    operator = make_linear()
    operator.intercept[...] = jnp.asarray(0.0)
    train(operator, make_data(33), batch_size=7, max_epochs=3)
    assert compiled().count("jit(run_epoch)") == 1


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, found 0"),
        ({"max_epochs": 1.5}, "max_epochs must be a whole number of at least 1, found 1.5"),
        ({"patience": -1}, "patience must be a whole number of at least 1, found -1"),
        ({"validation": 1.0}, r"validation must be a share .* found 1.0"),
        ({"validation": True}, r"validation must be a share .* found True"),
        ({"validation": np.array([0.5])}, "validation must hold rows"),
        ({"validation": np.array([1, 1])}, "some of the rows 0 ... 49, each once"),
        ({"validation": np.arange(50)}, "leave others"),
        ({"keep_start": True}, "keep_start compares with the start on held-out samples"),
    ],
)
def test_options_out_of_range_are_named(make_linear, make_data, options, message):
    with pytest.raises(ValueError, match=message):
        train(make_linear(), make_data(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, "Adam.clip must be above 0, found 0.0"),
        ({"average": 1.0}, "Adam.average must be between 0 and 1"),
    ],
)
def test_settings_of_adam_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Adam(**options)
    with pytest.raises(ValueError, match="Checkpoint.every must be a whole number of at least 1 epochs, found 0"):
        Checkpoint("run.npz", every=0)


def test_missing_keys_are_named_before_training(make_linear, make_data):
    data = make_data()
    with pytest.raises(KeyError, match=r"Linear needs data\['targets'\]"):
        train(make_linear(), {"features": data["features"]})
    with pytest.raises(KeyError, match=r"\['targets'\] are not in validation data"):
        train(make_linear(), data, validation={"features": data["features"]})


def test_epochs_that_raise_the_validation_loss_are_taken_back_with_half_the_steps(make_linear, make_data):
    """Steps far too large: without going back the loss rises first, with it the loss that is kept never does."""
    data, options = make_data(64), {"batch_size": 16, "max_epochs": 30, "validation": 0.25, "keep_start": True}
    data["features"][:, 0] *= 0.1
    plain, kept = make_linear(), make_linear()
    rising = train(plain, data, optimizer=Adam(8.0), **options).history["validation_loss"]
    report = train(kept, data, optimizer=Adam(8.0), backtracks=True, **options)
    curve, taken = report.history["validation_loss"], report.history["taken_back"]
    assert rising[0] > 1.5 * rising[-1]
    assert (rising[1:] > 1.05 * rising[:-1]).any()
    assert 0 < taken.sum() < 30
    best = np.minimum.accumulate(curve)
    assert (curve <= 1.002 * best).all()
    assert curve[-1] < 0.2 * rising.min() + 0.1
    again = make_linear()
    train(again, data, optimizer=Adam(8.0), backtracks=True, **options)
    np.testing.assert_array_equal(parameters(kept), parameters(again))


def test_an_average_of_weights_begins_anew_where_an_epoch_is_taken_back(make_linear, make_data):
    """Else it would go on from weights that were too far, and the next epoch, of half the steps, be judged by them."""
    data, options = make_data(64), {"batch_size": 16, "validation": 0.25, "keep_start": True, "backtracks": True}
    optimizer = Adam(8.0, average=0.999)
    taken = train(make_linear(), data, optimizer=optimizer, max_epochs=30, **options).history["taken_back"]
    first = int(np.flatnonzero(taken)[0])
    kept = make_linear()
    report = train(kept, data, optimizer=optimizer, max_epochs=first + 1, **options)
    assert report.history["taken_back"][-1] == 1
    before = make_linear()
    train(before, data, optimizer=optimizer, max_epochs=max(first, 1), **options)
    if first:
        np.testing.assert_array_equal(parameters(kept), parameters(before))
    variables = Variables({"float32": np.ones(2)}, None, optimizer.init({"a": np.zeros(2, np.float32)}))
    back = variables.back_at(({"float32": np.full(2, 5.0)}, None))
    np.testing.assert_array_equal(back.trained["float32"], 5.0)
    np.testing.assert_array_equal(back.judged[0]["float32"], 5.0)
