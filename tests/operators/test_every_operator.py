"""The laws of the contract, over every operator: one line below registers a new one."""

from __future__ import annotations

import dataclasses
import importlib
import json
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from flax import nnx

from diffbio_sc import _compiled
from diffbio_sc.operators import NotFittedWarning, Operator

SECONDS = 600  # after which threads that wait for each other are taken to have stopped; nothing is measured


def counts(rows, columns, rate=3.0, seed=0):
    return np.random.default_rng(seed).poisson(rate, (rows, columns)).astype(np.float32)


def grid(side):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(np.float32)


def contact_map(bins):
    distance = np.abs(np.subtract.outer(np.arange(bins), np.arange(bins)))
    upper = np.triu(np.random.default_rng(0).poisson(100.0 / (1.0 + distance)))
    return (upper + np.triu(upper, 1).T).astype(np.float32)


def labelled_sequences():
    bases = np.random.default_rng(0).integers(0, 4, (5, 12))
    return {
        "sequence": np.eye(4, dtype=np.float32)[bases],
        "tf_context": counts(5, 2),
        "targets": (bases == 0).astype(np.float32),
    }


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator, a small configuration of it, inputs, and options of a short fit."""

    module: str
    operator: str
    config: str
    settings: dict[str, Any]
    inputs: Callable[[], dict[str, np.ndarray]]
    fit: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def type(self) -> type[Operator]:
        return getattr(importlib.import_module(f"diffbio_sc.operators.{self.module}"), self.operator)

    def make(self, seed=0) -> Operator:
        config = getattr(importlib.import_module(f"diffbio_sc.operators.{self.module}"), self.config)
        return self.type(config(**self.settings), rngs=nnx.Rngs(seed))


CASES = {
    "multiomics_vae": Case(
        "multiomics", "DifferentiableMultiOmicsVAE", "MultiOmicsVAEConfig",
        {"modality_dims": (12, 9), "latent_dim": 2, "hidden_dim": 4, "encoder_dim": 4},
        lambda: {"rna_counts": counts(40, 12), "atac_counts": counts(40, 9, 1.0, 1)}, {"max_epochs": 1},
    ),
    "deconvolution": Case(
        "multiomics", "SpatialDeconvolution", "SpatialDeconvolutionConfig",
        {"n_cell_types": 3, "n_genes": 12, "hidden_dim": 4},
        lambda: {"spatial_expression": counts(20, 12), "reference_profiles": counts(3, 12, 5.0, 1) + 0.1},
    ),
    "spatial_genes": Case(
        "multiomics", "DifferentiableSpatialGeneDetector", "SpatialGeneDetectorConfig",
        {"n_genes": 4, "lengthscale": 1.5, "hidden_dims": (4,)},
        lambda: {"spatial_coords": grid(5), "expression": counts(25, 4)}, {"steps": 2},
    ),
    "peaks": Case(
        "epigenomics", "DifferentiablePeakCaller", "PeakCallerConfig",
        {"num_filters": 2, "kernel_sizes": [3], "vae_hidden_dim": 4, "vae_latent_dim": 2, "window_size": 20},
        lambda: {"signal": counts(2, 60, 1.0)}, {"steps": 2},
    ),
    "chromatin_states": Case(
        "epigenomics", "ChromatinStateAnnotator", "ChromatinStateConfig",
        {"num_states": 3, "num_marks": 2},
        lambda: {"histone_marks": (counts(40, 2, 0.5) > 0).astype(np.float32)}, {"max_steps": 2},
    ),
    "presence": Case(
        "epigenomics", "MarkBinarizer", "MarkBinarizerConfig", {"num_marks": 2},
        lambda: {"mark_counts": counts(40, 2, 2.0)}, {"steps": 2},
    ),
    "smoothing": Case(
        "epigenomics", "CoverageSmoother", "CoverageSmootherConfig", {"width": 40.0, "reach": 200},
        lambda: {"coverage": counts(2, 60, 1.0)}, {"steps": 2},
    ),
    "contacts": Case(
        "multiomics", "HiCContactAnalysis", "HiCContactAnalysisConfig",
        {"hidden_dim": 4, "n_layers": 1, "resolution": 25_000, "max_distance": 500_000},
        lambda: {"contact_matrix": contact_map(48)}, {"steps": 2},
    ),
    "contextual": Case(
        "epigenomics", "ContextualEpigenomicsOperator", "ContextualEpigenomicsConfig",
        {
            "hidden_dim": 8, "num_heads": 2, "num_layers": 1, "intermediate_dim": 8, "num_tf_features": 2,
            "stem_filters": 4, "stem_width": 3, "max_length": 12,
        },
        labelled_sequences, {"max_epochs": 1},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def data(case):
    return case.inputs()


@pytest.fixture(scope="module")
def operator(case):
    return case.make()


def applied(operator, data, **further):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotFittedWarning)
        return operator.apply({**data, **further}, {"step": 1}, "note")


@pytest.fixture(scope="module")
def result(operator, data):
    return applied(operator, data)[0]


def arrays(tree):
    """Leaves of results by path."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_close(found: Mapping[str, Any], expected: Mapping[str, Any], **tolerance):
    found, expected = arrays(found), arrays(expected)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerance)


def test_every_public_operator_is_registered():
    known = {case.operator for case in CASES.values()}
    for name in ("multiomics", "epigenomics"):
        package = importlib.import_module(f"diffbio_sc.operators.{name}")
        public = [getattr(package, entry) for entry in package.__all__]
        found = {one.__name__ for one in public if isinstance(one, type) and issubclass(one, Operator)}
        assert found <= known, f"register {sorted(found - known)} in CASES"


def test_inputs_and_unknown_keys_pass_through(case, operator, data, result):
    unknown = object()
    again, state, metadata = applied(operator, data, unknown=unknown)
    assert again["unknown"] is unknown
    assert (state, metadata) == ({"step": 1}, "note")
    assert set(again) == {*result, "unknown"}
    assert set(result) > set(data)
    for key, value in data.items():
        assert result[key] is value


def test_outputs_are_finite_and_repeat(operator, data, result):
    for name, value in arrays({key: result[key] for key in set(result) - set(data)}).items():
        assert np.isfinite(value).all(), name
    assert_close(applied(operator, data)[0], result, rtol=0)


def test_types_of_numbers_give_the_same_outputs(operator, data, result):
    for kind in (np.float64, np.int32, np.uint8):
        if all(np.array_equal(value, value.astype(kind)) for value in data.values()):
            given = {key: value.astype(kind) for key, value in data.items()}
            found = applied(operator, given)[0]
            outputs = set(result) - set(data)
            assert_close({key: found[key] for key in outputs}, {key: result[key] for key in outputs}, rtol=1e-5)


def test_unfitted_networks_warn_and_others_do_not(case, data):
    operator = case.make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        operator.apply(data)
    assert any(issubclass(one.category, NotFittedWarning) for one in caught) == operator.is_network


def test_missing_and_sparse_inputs_are_named(case, operator, data):
    for key in operator.required_keys:
        with pytest.raises(KeyError, match=rf"{case.operator} needs data\['{key}'\]"):
            operator.apply({name: value for name, value in data.items() if name != key})
        with pytest.raises(TypeError, match=rf"data\['{key}'\] is a scipy sparse matrix"):
            operator.apply({**data, key: sp.csr_matrix(data[key].reshape(len(data[key]), -1))})


def test_configurations_go_through_json(operator):
    fields = json.loads(json.dumps(operator.config.to_dict()))
    assert type(operator.config).from_dict(fields) == operator.config
    with pytest.raises(ValueError, match="has no fields"):
        type(operator.config).from_dict({**fields, "colour": 1})


def test_files_give_the_same_operator_and_no_other(case, operator, data, result, tmp_path):
    operator.save(tmp_path / "operator.npz")
    loaded = case.type.load(tmp_path / "operator.npz")
    assert loaded.config == operator.config
    assert_close(applied(loaded, data)[0], result, rtol=0)
    other = next(one for one in CASES.values() if one.operator != case.operator)
    with pytest.raises(ValueError, match=f"holds a {case.operator}, not a {other.operator}"):
        other.type.load(tmp_path / "operator.npz")


def test_loss_and_outputs_have_finite_gradients_in_every_parameter(operator, data):
    """One program for both: a generic weight on every output, and the loss itself."""
    graph, state = nnx.split(operator)
    weights = np.random.default_rng(0)

    @jax.jit
    def gradient(state):
        def objective(state):
            operator = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))
            found = operator(data)
            terms = [leaf for leaf in jax.tree.leaves(found) if jnp.issubdtype(leaf.dtype, jnp.floating)]
            total = sum((leaf * weights.normal(size=leaf.shape).astype(np.float32)).sum() for leaf in terms)
            return total + operator.loss(data)

        return jax.grad(objective, allow_int=True)(state)

    found = nnx.State(gradient(state))
    for path, leaf in nnx.to_flat_state(nnx.filter_state(found, nnx.Param)):
        value = np.asarray(leaf[...])
        assert np.isfinite(value).all(), path


WITHOUT_PRODUCTS = ("MarkBinarizer",)


def products(jaxpr):
    """Equations of a program, and of the programs in it, that multiply matrices."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns")):
            inner = getattr(inner, "jaxpr", inner)  # of a closed one
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_products_are_in_full_precision_on_accelerators(case, operator, data, monkeypatch):
    """Their default is 10 bits. The outputs, the loss and the gradients of both, in a user's own program."""
    monkeypatch.setattr(_compiled, "_products_are_rounded", lambda: True)
    graph, state = nnx.split(operator)

    def objective(state):
        operator = nnx.merge(graph, state)
        leaves = jax.tree.leaves(operator(data))
        return operator.loss(data) + sum(leaf.sum() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))

    program = jax.make_jaxpr(jax.grad(objective, allow_int=True))(state)
    found = list(products(program.jaxpr))
    assert found or case.operator in WITHOUT_PRODUCTS
    for equation in found:
        precision = equation.params["precision"]
        exact = equation.outvars[0].aval.dtype == jnp.int32 or precision == (jax.lax.Precision.HIGHEST,) * 2
        assert exact, f"{precision} at {equation.source_info.traceback}"


@pytest.mark.slow
def test_two_threads_take_turns(case, data):
    """Compiled programs that two threads start at once can wait for each other for ever."""
    operators, failures = [case.make(), case.make()], []

    def work(operator):
        try:
            applied(operator, data)
            operator.fit(data, **case.fit)
            applied(operator, data)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(one,), daemon=True) for one in operators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    assert not failures
    assert_close(applied(operators[0], data)[0], applied(operators[1], data)[0], rtol=0)
