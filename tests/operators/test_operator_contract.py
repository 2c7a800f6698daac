"""The contract of operators, on a linear regression whose answers have closed forms."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from flax import nnx
from no_warnings import no_warnings

from diffbio_sc.operators import FitReport, NotFittedWarning, Operator, OperatorConfig
from diffbio_sc.operators.contract import FittedStatistic, as_float_array, check_axis_size
from diffbio_sc.training import storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffineConfig(OperatorConfig):
    n_features: int = 3
    n_outputs: int = 1
    scale: float = 1.0
    offset: float = 0.0
    rate: float = 0.5
    kind: str = "plain"
    intercept: bool = True
    widths: tuple[int, ...] = (4, 2)

    def validate(self):
        self.require_integers("n_features", "n_outputs")
        self.require_positive("scale")
        self.require_positive("offset", zero_allowed=True)
        self.require_fractions("rate", one_allowed=False)
        self.require_one_of("kind", ("plain", "fancy"))
        self.require_booleans("intercept")
        self.require_sizes("widths")


class Affine(Operator):
    config_class = AffineConfig
    required_keys = ("features",)
    optional_keys = ("targets",)
    loss_takes_weights = True

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.weights = nnx.Param(rngs.normal((config.n_features, config.n_outputs)))
        self.intercept = nnx.Param(jnp.zeros(config.n_outputs))

    def __call__(self, data):
        features = as_float_array(data, "features", (1, 2))
        check_axis_size("features", features, -1, self.config.n_features, "config.n_features")
        return {"predicted": features @ self.weights[...] + self.intercept[...]}

    def loss(self, data):
        squares = (self(data)["predicted"] - as_float_array(data, "targets", (2,))) ** 2
        weights = data.get("sample_weight", jnp.ones(len(squares)))
        return jnp.sum(weights[:, None] * squares) / jnp.sum(weights)


class Scaled(Affine):
    pass


class Mixed(Operator):
    """All that a file must keep: types of several widths, a random stream, a submodule, a statistic."""

    config_class = AffineConfig
    required_keys = ("features",)
    is_network = True

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.linear = nnx.Linear(config.n_features, 4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs, param_dtype=jnp.bfloat16) for _ in range(2)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.count = FittedStatistic(jnp.arange(3, dtype=jnp.int32))
        self.mask = FittedStatistic(jnp.array([True, False]))

    def __call__(self, data):
        hidden = self.linear(as_float_array(data, "features", (2,)))
        for layer in self.layers:
            hidden = layer(hidden)
        return {"hidden": self.dropout(hidden)}


@pytest.fixture
def affine():
    return Affine(AffineConfig(), rngs=nnx.Rngs(0))


@pytest.fixture
def regression():
    random = np.random.default_rng(0)
    features = random.normal(size=(50, 3)).astype(np.float32)
    targets = features @ [[1.0], [-2.0], [0.5]] + 3.0 + 0.1 * random.normal(size=(50, 1))
    return {"features": features, "targets": targets.astype(np.float32)}


# --- configuration


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_features", -3, "AffineConfig.n_features must be a positive integer, found -3."),
        ("n_features", 2.0, "AffineConfig.n_features must be a positive integer, found 2.0."),
        ("n_features", True, "AffineConfig.n_features must be a positive integer, found True."),
        ("scale", 0.0, "AffineConfig.scale must be a finite number above 0, found 0.0."),
        ("scale", float("nan"), "AffineConfig.scale must be a finite number above 0, found nan."),
        ("offset", -0.1, "AffineConfig.offset must be a finite number, not negative, found -0.1."),
        ("rate", 1, "AffineConfig.rate must be a number from 0 to below 1, found 1."),
        ("rate", "half", "AffineConfig.rate must be a number from 0 to below 1, found 'half'."),
        ("kind", "odd", "AffineConfig.kind must be one of ['plain', 'fancy'], found 'odd'."),
        ("intercept", 1, "AffineConfig.intercept must be True or False, found 1."),
        ("widths", [3, 0], "AffineConfig.widths must be a list of positive integers with at least one entry, found"),
        ("widths", [], "AffineConfig.widths must be a list of positive integers with at least one entry, found ()."),
    ],
)
def test_a_config_names_the_field_that_is_wrong(field, value, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        AffineConfig(**{field: value})
    assert str(caught.value).startswith(message)


def test_configs_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AffineConfig().n_features = 4
    with pytest.raises(TypeError):
        AffineConfig(4)


def test_equal_configs_hash_alike_from_lists_tuples_and_numpy():
    from_list = AffineConfig(n_features=3, widths=[8, 4])
    from_numpy = AffineConfig(n_features=np.int64(3), widths=np.array([8, 4]), scale=np.float64(1.0))
    assert from_list == from_numpy == AffineConfig(widths=(8, 4))
    assert len({from_list, from_numpy}) == 1
    assert type(from_numpy.n_features) is int


def test_a_config_survives_json_and_refuses_unknown_fields():
    config = AffineConfig(widths=[7], rate=0.1)
    fields = json.loads(json.dumps(config.to_dict()))
    assert AffineConfig.from_dict(fields) == config
    with pytest.raises(ValueError, match=r"AffineConfig has no fields \['colour'\]; its fields are \['n_features'"):
        AffineConfig.from_dict({**fields, "colour": 1})


def test_an_operator_refuses_another_operators_config():
    with pytest.raises(TypeError, match="Affine takes a AffineConfig, found OperatorConfig"):
        Affine(OperatorConfig(), rngs=nnx.Rngs(0))


# --- apply


def test_apply_keeps_inputs_unknown_keys_state_and_metadata(affine, regression):
    state, note = {"step": 3}, object()
    data = {**regression, "note": note}
    result, returned_state, metadata = affine.apply(data, state, None)
    assert returned_state is state
    assert metadata is None
    assert result["note"] is note
    assert result["features"] is regression["features"]
    assert set(result) == {"features", "targets", "note", "predicted"}
    assert "predicted" not in data
    expected = regression["features"] @ np.asarray(affine.weights[...]) + np.asarray(affine.intercept[...])
    np.testing.assert_allclose(result["predicted"], expected, rtol=1e-5, atol=1e-6)


def test_apply_is_the_same_under_jit_and_vmap(affine, regression):
    features = jnp.asarray(regression["features"])
    plain = affine.apply({"features": features}, {}, None)[0]["predicted"]
    jitted = nnx.jit(lambda operator, data: operator.apply(data, {}, None)[0])(affine, {"features": features})
    mapped = jax.vmap(lambda data: affine.apply(data, {}, None)[0])({"features": features})
    np.testing.assert_allclose(jitted["predicted"], plain, rtol=1e-6)
    np.testing.assert_allclose(mapped["predicted"], plain, rtol=1e-5, atol=1e-6)


def test_gradients_go_through_apply_and_loss_by_the_closed_form(affine, regression):
    features, targets = (regression[key].astype(float) for key in ("features", "targets"))
    residual = features @ np.asarray(affine.weights[...], float) + np.asarray(affine.intercept[...], float) - targets
    expected = {"weights": 2 * features.T @ residual / 50, "intercept": 2 * residual.mean(0)}

    def through_apply(operator):
        result = operator.apply(regression, {}, None)[0]
        return jnp.mean((result["predicted"] - result["targets"]) ** 2)

    for gradient in (nnx.grad(through_apply)(affine), nnx.grad(lambda operator: operator.loss(regression))(affine)):
        for name, value in expected.items():
            np.testing.assert_allclose(gradient[name][...], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("convert", [lambda x: x.astype(int), lambda x: x.astype(int).tolist(), lambda x: x > 0])
def test_integers_lists_and_booleans_are_taken_as_float32(affine, regression, convert):
    features = convert(regression["features"])
    result = affine.apply({"features": features}, {}, None)[0]
    assert result["predicted"].dtype == jnp.float32
    expected = np.asarray(features, float) @ np.asarray(affine.weights[...], float)
    np.testing.assert_allclose(result["predicted"], expected, rtol=1e-5, atol=1e-6)


def test_missing_keys_are_named_with_those_present(affine):
    with pytest.raises(KeyError, match=r"Affine needs data\['features'\]; found the keys \['depth', 'targets'\]"):
        affine.apply({"targets": 1, "depth": 2}, {}, None)


@pytest.mark.parametrize("key", ["features", "targets"])
@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_sparse_input_points_to_toarray_and_tl(affine, regression, key, kind):
    with pytest.raises(TypeError, match=rf"data\['{key}'\] is a scipy sparse matrix.*toarray\(\).*diffbio_sc\.tl"):
        affine.apply({**regression, key: kind(regression[key])}, {}, None)


def test_wrong_axes_sizes_and_types_are_named(affine):
    with pytest.raises(ValueError, match=r"data\['features'\] must have 1 or 2 axes, found shape \(2, 3, 3\)"):
        affine.apply({"features": np.ones((2, 3, 3))}, {}, None)
    with pytest.raises(
        ValueError, match=r"must have 3 entries along axis -1 \(config.n_features\), found shape \(2, 4\)"
    ):
        affine.apply({"features": np.ones((2, 4))}, {}, None)
    with pytest.raises(TypeError, match=r"data\['features'\] must hold real numbers, found dtype <U1"):
        affine.apply({"features": np.array(["a", "b", "c"])}, {}, None)


# --- unfitted networks


def test_a_network_warns_until_it_is_fitted_or_marked():
    features = {"features": np.ones((2, 3), np.float32)}
    network = Mixed(AffineConfig(), rngs=nnx.Rngs(0))
    with pytest.warns(NotFittedWarning, match="Mixed is a network that was not fitted"):
        network.apply(features, {}, None)
    network.mark_fitted()
    with no_warnings():
        network.apply(features, {}, None)


def test_a_network_in_a_users_training_loop_does_not_warn():
    network = Mixed(AffineConfig(), rngs=nnx.Rngs(0))
    with no_warnings():
        nnx.grad(lambda operator: operator.apply({"features": np.ones((2, 3))}, {}, None)[0]["hidden"].sum())(network)


def test_operators_that_are_no_network_never_warn(affine, regression):
    with no_warnings():
        affine.apply(regression, {}, None)


# --- saving and loading


def test_saved_and_loaded_operators_agree_bit_for_bit_and_keep_types(tmp_path):
    path = tmp_path / "mixed.model"
    operator = Mixed(AffineConfig(n_features=3, widths=[9]), rngs=nnx.Rngs(params=1, dropout=2, default=3))
    operator.mark_fitted()
    data = {"features": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)}
    operator.apply(data, {}, None)  # moves the dropout stream on
    operator.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mixed.model"]
    loaded = Mixed.load(path)
    assert loaded.config == operator.config
    for name, value in storage.variables(operator).items():
        assert storage.variables(loaded)[name].dtype == value.dtype, name
    for _ in range(2):
        expected, found = (one.apply(data, {}, None)[0]["hidden"] for one in (operator, loaded))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert {str(value.dtype) for value in storage.variables(loaded).values()} >= {
        "bfloat16",
        "int32",
        "bool",
        "float32",
    }


def test_a_file_holds_no_pickle_and_says_what_it_is(affine, tmp_path):
    affine.save(tmp_path / "affine.npz")
    with np.load(tmp_path / "affine.npz", allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        np.testing.assert_array_equal(file["arrays/weights"], np.asarray(affine.weights[...]))
    assert header["operator"] == "Affine"
    assert header["format"] == 1
    assert header["config"]["widths"] == [4, 2]


def _rewrite(path, change):
    with np.load(path) as file:
        entries = dict(file)
    header = json.loads(str(entries["header"]))
    change(header, entries)
    entries["header"] = np.array(json.dumps(header))
    with open(path, "wb") as file:
        np.savez(file, **entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda header, entries: header.update(format=99, version="7.0"),
            r"format 99 \(written by diffbio_sc 7.0\), this",
        ),
        (lambda header, entries: header.update(kind="recipe"), "'recipe' file, expected a 'operator' file"),
        (lambda header, entries: header["config"].update(colour=1), r"has no fields \['colour'\]"),
        (
            lambda header, entries: header["config"].update(scale=-1),
            "AffineConfig.scale must be a finite number above 0",
        ),
        (lambda header, entries: header["dtypes"].pop("intercept"), r"missing \['intercept'\], unknown \[\]"),
        (lambda header, entries: entries.pop("arrays/weights"), "is incomplete: array 'weights' is missing"),
        (
            lambda header, entries: header["config"].update(n_features=7),
            r"'weights' must have shape \(7, 1\) .* \(3, 1\)",
        ),
        (
            lambda header, entries: (
                header["dtypes"].update(weights="int32"),
                entries.update({"arrays/weights": np.zeros((3, 1), np.int32)}),
            ),
            "kind floating point, found shape .* dtype int32",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(affine, tmp_path, change, message):
    path = tmp_path / "affine.npz"
    affine.save(path)
    _rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        Affine.load(path)


def test_another_operators_file_is_refused(affine, tmp_path):
    affine.save(tmp_path / "affine.npz")
    with pytest.raises(ValueError, match="holds a Affine, not a Scaled"):
        Scaled.load(tmp_path / "affine.npz")


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "one.npy", "other.npz", "empty"):
        with pytest.raises(ValueError, match="is not a diffbio_sc operator file"):
            Affine.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Affine.load(tmp_path / "absent")


def test_a_failed_save_leaves_the_old_file(affine, tmp_path, monkeypatch):
    path = tmp_path / "affine.npz"
    affine.save(path)
    before = path.read_bytes()

    def fail(*arguments, **entries):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        affine.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["affine.npz"]


def test_a_loaded_operator_has_the_permissions_of_any_new_file(affine, tmp_path):
    affine.save(tmp_path / "affine.npz")
    (tmp_path / "plain").touch()
    assert os.stat(tmp_path / "affine.npz").st_mode == os.stat(tmp_path / "plain").st_mode


def test_an_abstract_operator_says_so():
    operator = Operator(OperatorConfig(), rngs=nnx.Rngs(0))
    with pytest.raises(NotImplementedError, match="has no __call__"):
        operator({})
    with pytest.raises(NotImplementedError, match="has no loss"):
        operator.loss({})


# --- fit


def test_fit_reaches_the_least_squares_solution(affine, regression):
    design = np.column_stack([regression["features"], np.ones(50)]).astype(float)
    solution = np.linalg.lstsq(design, regression["targets"].astype(float), rcond=None)[0]
    report = affine.fit(regression, learning_rate=0.1, batch_size=None, max_epochs=400)
    np.testing.assert_allclose(affine.weights[...], solution[:3], atol=1e-4)
    np.testing.assert_allclose(affine.intercept[...], solution[3], atol=1e-4)
    assert report.steps == 400
    residual = float(((design @ solution - regression["targets"]) ** 2).mean())
    assert report.history["loss"][-1] == pytest.approx(residual, rel=1e-4)


def test_a_report_is_plain_and_readable():
    report = FitReport({"loss": np.array([2.0, 0.5]), "nonfinite_steps": np.array([0, 0])}, True, 2, 0.25)
    plain = report.as_dict()
    assert {key: type(value) for key, value in plain.items()} == {
        "history": dict,
        "converged": bool,
        "steps": int,
        "seconds": float,
    }
    assert all(curve.dtype == np.float64 and curve.ndim == 1 for curve in plain["history"].values())
    assert repr(report) == "FitReport(converged, 2 steps, 0.25 s, loss 2 -> 0.5, nonfinite_steps 0 -> 0)"


# --- the lower floor


def test_operators_and_training_import_without_the_upper_floor():
    script = """
import sys
for name in ("anndata", "mudata", "scanpy", "pandas", "diffbio_sc.tl"):
    sys.modules[name] = None
import diffbio_sc.operators.contract, diffbio_sc.training.loop
"""
    subprocess.run([sys.executable, "-c", script], check=True)
