from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from no_warnings import no_warnings

from diffbio_sc.training import Adam, Checkpoint, storage, train

OPTIONS = {"batch_size": 16, "learning_rate": 0.02, "validation": 0.2, "patience": 50, "rng": 4}


def assert_equal(first, second):
    expected = storage.variables(second)
    for name, value in storage.variables(first).items():
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value, expected[name] = jax.random.key_data(value), jax.random.key_data(expected[name])
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(make_linear, make_data, tmp_path, every):
    whole, broken, resumed = (make_linear(dropout=0.3) for _ in range(3))
    expected = train(whole, make_data(), max_epochs=12, **OPTIONS)
    path = tmp_path / "run.npz"
    train(broken, make_data(), max_epochs=5, checkpoint=Checkpoint(path, every), **OPTIONS)
    report = train(resumed, make_data(), max_epochs=12, checkpoint=Checkpoint(path, every), **OPTIONS)
    assert_equal(resumed, whole)
    assert report.steps == 12
    for name, curve in expected.history.items():
        np.testing.assert_array_equal(report.history[name], curve)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.npz"]


def test_averaged_weights_survive_a_checkpoint(make_linear, make_data, tmp_path):
    options = {**OPTIONS, "optimizer": Adam(0.05, average=0.9)}
    whole, broken, resumed = (make_linear() for _ in range(3))
    train(whole, make_data(), max_epochs=6, **options)
    train(broken, make_data(), max_epochs=3, checkpoint=tmp_path / "run.npz", **options)
    train(resumed, make_data(), max_epochs=6, checkpoint=tmp_path / "run.npz", **options)
    assert_equal(resumed, whole)


def test_a_run_killed_between_checkpoints_resumes_from_the_last(make_linear, make_data, tmp_path, monkeypatch):
    from diffbio_sc.training import loop

    whole, killed, resumed = (make_linear() for _ in range(3))
    train(whole, make_data(), max_epochs=9, **OPTIONS)
    run_epoch, calls = loop.run_epoch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return run_epoch(*arguments)

    options = {"max_epochs": 9, "checkpoint": Checkpoint(tmp_path / "run.npz", every=2), **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(killed, make_data(), **options)
    # The interrupted operator is whole: none of its arrays was given away.
    np.testing.assert_array_equal(killed.weights[...], 0)
    train(resumed, make_data(), **options)
    assert_equal(resumed, whole)


def test_a_finished_run_is_not_trained_further(make_linear, make_data, tmp_path):
    first, second = make_linear(), make_linear()
    options = {"learning_rate": 0.5, "batch_size": None, "patience": 3, "max_epochs": 500}
    before = train(first, make_data(), checkpoint=tmp_path / "run", **options)
    assert before.converged
    after = train(second, make_data(), checkpoint=tmp_path / "run", **options)
    assert_equal(first, second)
    assert (after.converged, after.steps) == (True, before.steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"dropout": 0.5}}, r"another run: expected {'config': .*'dropout': 0.5.*found {'config':"),
        ({"data": {"size": 49}}, "another run: expected .*'samples': 49.*found .*'samples': 50"),
        ({"data": {"seed": 1}}, "another run: expected {'data': "),
        ({"options": {"batch_size": 8}}, "another run: expected {'batch_size': 8}, found {'batch_size': 16}"),
        ({"options": {"rng": 5}}, "another run: expected {'random_key'"),
        ({"options": {"optimizer": optax.sgd(0.1)}}, r"\(variables\) does not hold the expected arrays: .* unknown \["),
        ({"options": {"wrt": nnx.PathContains("weights")}}, "does not hold the expected arrays"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_or_overwritten_on_request(
    make_linear, make_data, tmp_path, change, message
):
    path = tmp_path / "run.npz"
    train(make_linear(), make_data(), max_epochs=1, checkpoint=path, **OPTIONS)
    operator = make_linear(**change.get("config", {}))
    data = make_data(**change.get("data", {}))
    options = {**OPTIONS, **change.get("options", {}), "max_epochs": 2, "checkpoint": path}
    with pytest.raises(ValueError, match=message):
        train(operator, data, **options)
    np.testing.assert_array_equal(operator.weights[...], 0)
    again = {**options, "checkpoint": Checkpoint(path, resume=False)}
    assert train(operator, data, **again).steps == 2


def test_an_operators_file_is_no_checkpoint(make_linear, make_data, tmp_path):
    make_linear().save(tmp_path / "operator.npz")
    with pytest.raises(ValueError, match="is a diffbio_sc 'operator' file, expected a 'training checkpoint' file"):
        train(make_linear(), make_data(), checkpoint=tmp_path / "operator.npz")


def test_training_gives_no_warning_of_its_own(make_linear, make_data, tmp_path):
    with no_warnings():
        train(make_linear(dropout=0.1), make_data(), max_epochs=2, checkpoint=tmp_path / "run.npz", **OPTIONS)
