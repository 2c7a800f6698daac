"""The multi-omics VAE on arrays: contract, closed forms, training, and the specification's examples."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from compiled_programs import compiled_programs
from flax import nnx
from scipy.stats import norm

from diffbio_sc._compiled import full_products
from diffbio_sc.numerics.counts import likelihoods
from diffbio_sc.numerics.padding import bucket_size
from diffbio_sc.operators import FitReport, NotFittedWarning
from diffbio_sc.operators.multiomics import (
    DifferentiableMultiOmicsVAE,
    MultiOmicsVAEConfig,
    product_of_experts,
)
from diffbio_sc.operators.multiomics.multiomics_vae import features as reading
from diffbio_sc.operators.multiomics.multiomics_vae import fitting, posterior
from diffbio_sc.operators.multiomics.multiomics_vae.features import dense_features, read_features
from diffbio_sc.operators.multiomics.multiomics_vae.regression import Regression
from diffbio_sc.operators.multiomics.multiomics_vae.start import start_decoder
from diffbio_sc.training.batches import place_samples
from diffbio_sc.training.devices import place_training

CELLS, GENES, PEAKS = 160, 40, 30
LEAST_CORRELATION = 0.85  # of the linear solution with the factor that was simulated


def simulate(seed=0, cells=CELLS, dims=(GENES, PEAKS), depth=(400.0, 120.0)):
    """Counts whose log rates are linear in two factors; returns the matrices and the factors."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(cells, 2))
    matrices = []
    for features, total in zip(dims, depth, strict=True):
        rates = np.exp(factors @ rng.normal(0, 0.7, (2, features)) + rng.normal(0, 0.7, features))
        rates *= total / rates.sum(1, keepdims=True)
        matrices.append(rng.poisson(rates).astype(np.float32))
    return matrices, factors


def make(dims=(GENES, PEAKS), **options):
    config = MultiOmicsVAEConfig(modality_dims=dims, latent_dim=2, hidden_dim=8, encoder_dim=6, **options)
    return DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnames="likelihood")
def loss_and_slopes(likelihood, decoder, counts, latent):
    """Negative log-likelihood per cell of one modality at given latent vectors, and its gradient by those."""

    def loss(latent):
        sizes = jnp.log(counts.sum(1))
        parameters = nnx.merge(*decoder).parameters(likelihood, latent, jnp.zeros(len(latent), int), sizes)
        return -getattr(likelihoods, likelihood)(counts, **parameters).mean()

    return jax.value_and_grad(loss)(latent)


def by_modality(vae, matrices, latent):
    """What :func:`loss_and_slopes` gives for each modality."""
    names = vae.config.modality_likelihoods
    return [
        loss_and_slopes(name, nnx.split(decoder), jnp.asarray(matrix), jnp.asarray(latent))
        for name, decoder, matrix in zip(names, vae.decoders, matrices, strict=True)
    ]


@pytest.fixture(scope="module")
def simulated():
    return simulate()


@pytest.fixture(scope="module")
def data(simulated):
    matrices, _ = simulated
    return {"rna_counts": matrices[0], "atac_counts": matrices[1]}


@pytest.fixture(scope="module")
def started(simulated):
    vae = make()
    vae.initialize(simulated[0])
    return vae


@pytest.fixture(scope="module")
def fitted(simulated):
    vae = make()
    report = vae.fit_matrices([sp.csr_array(matrix) for matrix in simulated[0]], max_epochs=30, rng=0)
    return vae, report


# --- M18 to M22 -------------------------------------------------------------------------------------------------------


def test_m18_config_defaults_and_refusals():
    config = MultiOmicsVAEConfig()
    assert config.modality_dims == (2000, 500)
    assert (config.latent_dim, config.hidden_dim) == (10, 64)
    assert (config.modality_weight_mode, config.use_gradnorm) == ("equal", False)
    assert MultiOmicsVAEConfig(modality_dims=[3, 4]).modality_dims == (3, 4)
    for options, field in (
        ({"modality_weight_mode": "softmax"}, "modality_weight_mode"),
        ({"likelihoods": ["negative_binomial", "beta"]}, "likelihoods"),
        ({"likelihoods": ["negative_binomial"]}, "likelihoods"),
        ({"modality_dims": [5, 1]}, "modality_dims"),
        ({"fusion": "sum"}, "fusion"),
    ):
        with pytest.raises(ValueError, match=field):
            MultiOmicsVAEConfig(**options)


def test_m19_product_of_experts_is_the_closed_form():
    rng = np.random.default_rng(0)
    means, log_variances = rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 5, 2))
    mean, log_variance = product_of_experts(means, log_variances)
    precision = np.exp(-log_variances)
    np.testing.assert_allclose(mean, (means * precision).sum(0) / precision.sum(0), rtol=1e-5)
    np.testing.assert_allclose(log_variance, -np.log(precision.sum(0)), rtol=1e-5, atol=1e-6)


def test_m19_posterior_of_a_cell_without_a_modality_is_that_of_the_other_alone(started, simulated):
    present = np.ones((CELLS, 2), bool)
    present[:50, 1] = False
    encoding = started.encode(simulated[0], present=present)
    alone = [started.encode(simulated[0], present=np.eye(2, dtype=bool)[[m] * CELLS]) for m in range(2)]
    np.testing.assert_allclose(encoding.mean[:50], encoding.modality_mean[0, :50], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoding.variance[:50], alone[0].variance[:50], rtol=1e-5)
    assert np.isnan(encoding.modality_mean[1, :50]).all()
    for m in range(2):
        np.testing.assert_allclose(alone[m].mean[50:], encoding.modality_mean[m, 50:], rtol=1e-5, atol=1e-6)
    # With both: precisions add up, less the prior that both have.
    precision = np.stack([1 / one.variance[50:] for one in alone])
    together = precision.sum(0) - 1
    mean = (encoding.modality_mean[:, 50:] * precision).sum(0) / together
    np.testing.assert_allclose(encoding.variance[50:], 1 / together, rtol=1e-4)
    np.testing.assert_allclose(encoding.mean[50:], mean, rtol=1e-3, atol=1e-5)


def test_m20_outputs_of_apply(started, data):
    result, state, metadata = started.apply({**data, "kept": 1}, {"s": 1}, "m")
    assert (state, metadata, result["kept"]) == ({"s": 1}, "m", 1)
    assert result["joint_latent"].shape == (CELLS, 2)
    assert result["elbo_loss"].shape == ()
    for name in ("rna", "atac"):
        # Expected counts of a cell sum to its own total.
        totals = data[f"{name}_counts"].sum(1)
        np.testing.assert_allclose(result[f"{name}_reconstructed"].sum(1), totals, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_m21_keys_of_other_numbers_of_modalities(count):
    vae = make(dims=(10,) * count)
    counts = np.random.default_rng(0).poisson(2.0, (6, 10))
    with pytest.warns(NotFittedWarning):
        result, _, _ = vae.apply({f"modality_{i}_counts": counts for i in range(count)})
    assert all(f"modality_{i}_reconstructed" in result for i in range(count))
    with pytest.raises(KeyError, match="modality_0_counts"):
        vae.apply({"rna_counts": counts})


def test_m22_gradnorm_gives_weight_to_the_modality_with_the_small_gradient(simulated, data):
    matrices, _ = simulated
    vae = make(use_gradnorm=True, gradnorm_alpha=0.0)
    vae.initialize(matrices)

    encoding = vae.encode(matrices)
    latent = jnp.asarray(encoding.mean + np.sqrt(encoding.variance) * jax.random.normal(jax.random.key(0), (CELLS, 2)))

    norms = [float(jnp.linalg.norm(slopes, axis=1).sum()) for _, slopes in by_modality(vae, matrices, latent)]
    large, small = np.argsort(norms)[::-1]
    gradient = np.asarray(nnx.grad(lambda op: op.loss(data))(vae)["log_balance"][...])
    # Descent must lower the weight of the modality with the larger gradients on z.
    assert gradient[large] > 0 > gradient[small]


def test_learnable_weights_settle_where_their_log_term_balances(simulated, data):
    vae = make(modality_weight_mode="learnable")
    vae.initialize(simulated[0])
    gradient = nnx.grad(lambda op: op.loss(data))(vae)["log_temperature"][...]
    # d/dt of L exp(-t) + F t at t = 0 is F - L.
    noise = jnp.asarray(jax.random.normal(jax.random.key(0), (CELLS, 2)))
    encoding = vae.encode(simulated[0])
    latent = jnp.asarray(encoding.mean) + jnp.sqrt(jnp.asarray(encoding.variance)) * noise
    for m, (loss, _) in enumerate(by_modality(vae, simulated[0], latent)):
        np.testing.assert_allclose(gradient[m], simulated[0][m].shape[1] - loss, rtol=1e-2)


# --- the start --------------------------------------------------------------------------------------------------------


def test_initial_solution_recovers_simulated_factors(started, simulated):
    matrices, factors = simulated
    latent = started.encode(matrices).mean
    design = np.concatenate([latent, np.ones((CELLS, 1))], axis=1)
    fitted = design @ np.linalg.lstsq(design, factors, rcond=None)[0]
    for k in range(2):
        assert np.corrcoef(fitted[:, k], factors[:, k])[0, 1] > LEAST_CORRELATION


def test_initial_decoder_beats_the_mean(started, simulated):
    matrices, _ = simulated
    score = started.score(matrices)
    share = matrices[1].sum(0) / matrices[1].sum()
    null = np.asarray(jax.jit(likelihoods.multinomial)(matrices[1], np.log(share)[None]))
    assert score["log_likelihood_1"].mean() > null.mean() + 1.0


def test_slopes_start_at_half_a_newton_step_of_the_poisson_regression(simulated):
    """Gradient and curvature by automatic differentiation in float64; a prior of 10 reads, slopes of at most 1."""
    counts, latent = simulated[0][0].astype(float), simulated[1]
    vae, size = make(), counts.sum(1)
    batch = np.zeros(CELLS, int)
    start_decoder(vae.decoders[0], "negative_binomial", vae.config, sp.csr_array(counts), latent, batch, np.log(size))
    share = counts.sum(0) / size.sum()

    def log_likelihood(slopes):
        rates = size[:, None] * share * jnp.exp(latent @ slopes)
        return (counts * jnp.log(rates) - rates).sum()

    with jax.enable_x64(True):
        zero = jnp.zeros((2, GENES), jnp.float64)
        gradient = jax.grad(log_likelihood)(zero)
        moved = [jnp.zeros_like(zero).at[k].set(1.0) for k in range(2)]
        curvature = [-jax.jvp(jax.grad(log_likelihood), (zero,), (one,))[1][k] for k, one in enumerate(moved)]
    step = np.clip(np.asarray(gradient) / (np.stack(curvature) + 10.0), -1.0, 1.0)
    found = np.asarray(vae.decoders[0].slopes[...]).T
    assert np.abs(found).max() > 0.2
    np.testing.assert_allclose(found, 0.5 * step, rtol=1e-3, atol=1e-4)


@full_products()
def test_features_of_dense_and_sparse_counts_agree(started, simulated):
    names = started.config.modality_likelihoods
    for m, matrix in enumerate(simulated[0]):
        dense = np.asarray(dense_features(started.encoders[m], names[m], jnp.asarray(matrix)))
        sparse = read_features(started.encoders[m], names[m], sp.csr_array(matrix))
        np.testing.assert_allclose(dense, sparse, rtol=1e-3, atol=2e-3)


def test_a_noise_modality_gets_no_say():
    (rna, _), factors = simulate(1)
    noise = np.random.default_rng(2).poisson(1.0, (CELLS, PEAKS)).astype(np.float32)
    vae = make()
    vae.initialize([rna, noise])
    shares = vae.encode([rna, noise]).shares.mean(0)
    assert shares[1] < 0.15
    assert shares[0] > 4 * shares[1]


# --- training ---------------------------------------------------------------------------------------------------------


def test_fit_lowers_the_held_out_bound_and_is_reproducible(fitted, simulated):
    vae, report = fitted
    held_out = report.history["validation_loss"]
    assert held_out.min() < held_out[0]
    again = make()
    again.fit_matrices([sp.csr_array(matrix) for matrix in simulated[0]], max_epochs=30, rng=0)
    for first, second in zip(jax.tree.leaves(nnx.state(vae)), jax.tree.leaves(nnx.state(again)), strict=True):
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_other_cells_of_the_bucket_compile_no_second_epoch(simulated, caplog):
    """Another number of cells and another draw of those held out, where all sizes round to the same buckets."""
    with jax.log_compiles():
        for cells, seed in ((CELLS, 0), (CELLS, 1), (CELLS - 2, 0)):
            caplog.clear()
            make().fit_matrices([matrix[:cells] for matrix in simulated[0]], max_epochs=1, rng=seed)
            compiled = [record.getMessage() for record in caplog.records]
            found = any(text.startswith("Finished XLA compilation of jit(run_epoch)") for text in compiled)
            assert seed == 0 == CELLS - cells or not found, (cells, seed)


def test_seeds_share_their_programs():
    """Cells of very different depth: those held out, and the rest, need room for other numbers of entries each time."""
    rng = np.random.default_rng(0)
    depth = rng.lognormal(0.0, 0.6, (CELLS, 1))
    matrices = [sp.csr_array(rng.poisson(rate * depth, (CELLS, 90)).astype(np.float32)) for rate in (0.2, 0.5)]
    make((90, 90)).fit_matrices(matrices, max_epochs=1, rng=0)
    with compiled_programs() as programs:
        for seed in range(1, 9):
            make((90, 90)).fit_matrices(matrices, max_epochs=1, rng=seed)
    assert programs == []


def test_590_cells_compile_nothing_after_600():
    """A whole fit, with its start, embedding and regressions: the programs that XLA is asked for are counted."""
    rng = np.random.default_rng(0)
    matrices = [sp.csr_array(rng.poisson(0.5, (600, 60)).astype(np.float32))]
    matrices.append(sp.csr_array(rng.poisson(20.0, (600, 12)).astype(np.float32)))
    present, batch = np.ones((600, 2), bool), (np.arange(600) % 2).astype(np.int32)
    present[::5, 1] = False
    config = {"likelihoods": ("negative_binomial", "protein_mixture"), "n_batches": 2, "subset_rate": 0.3}
    compiled = []

    def count(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    numbers = []
    for cells, seed in ((600, 0), (590, 1)):
        compiled.clear()
        parts = [matrix[:cells] for matrix in matrices]
        vae = make((60, 12), **config)
        vae.fit_matrices(parts, present=present[:cells], batch=batch[:cells], max_epochs=1, rng=seed)
        vae.embed(parts, present=present[:cells], batch=batch[:cells])
        vae.impute(1, parts, present=present[:cells], batch=batch[:cells])
        numbers.append(len(compiled))
    jax.monitoring.unregister_event_duration_listener(count)
    assert numbers[0] > 0
    assert numbers[1] == 0


def test_loss_on_arrays_is_the_training_loss_without_penalty(fitted, simulated, data):
    vae, _ = fitted
    noise = np.random.default_rng(0).normal(size=(CELLS, 2)).astype(np.float32)
    value = float(vae.loss({**data, "noise": noise}))
    encoding = vae.encode(simulated[0])
    latent = jnp.asarray(encoding.mean + np.sqrt(encoding.variance) * noise)
    total = 0.5 * (encoding.mean**2 + encoding.variance - 1 - np.log(encoding.variance)).sum(1).mean()
    total += sum(float(loss) for loss, _ in by_modality(vae, simulated[0], latent))
    assert value == pytest.approx(total, rel=1e-3)


def test_hidden_modality_is_imputed_better_than_by_its_mean(simulated):
    matrices, _ = simulated
    present = np.ones((CELLS, 2), bool)
    present[:40, 1] = False
    vae = make()
    vae.initialize(matrices, present=present)
    latent = vae.encode(matrices, present=present).mean
    shares = vae.expected(1, latent)[:40]
    held_out = matrices[1][:40]
    mean = matrices[1][40:].sum(0) / matrices[1][40:].sum()
    assert (held_out * np.log(shares)).sum() > (held_out * np.log(mean)).sum()
    sizes = np.log(np.stack([matrix.sum(1) for matrix in matrices], axis=1))
    sizes[:40, 1] = np.nan
    predicted = vae.predict_log_size(1, latent, sizes)
    assert np.abs(predicted[:40] - np.log(held_out.sum(1))).mean() < 0.3


def test_held_out_bound_of_both_modalities_beats_the_sum_of_their_own_models(simulated):
    matrices, _ = simulated
    noise = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)

    def held_out_loss(chosen, names):
        vae = make(dims=tuple(matrices[m].shape[1] for m in chosen), likelihoods=names)
        vae.initialize([matrices[m][:-60] for m in chosen])
        keys = vae.required_keys
        return float(vae.loss({key: matrices[m][-60:] for key, m in zip(keys, chosen, strict=True)} | {"noise": noise}))

    apart = held_out_loss((0,), ("negative_binomial",)) + held_out_loss((1,), ("multinomial",))
    assert held_out_loss((0, 1), ("negative_binomial", "multinomial")) < apart


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "modalities", "names", "latent"),
    [
        ("snare_cortex_dev", ("rna", "atac"), ("negative_binomial", "multinomial"), 30),
        ("bmmc_cite", ("rna", "prot"), ("negative_binomial", "protein_mixture"), 20),
    ],
)
def test_held_out_bound_on_real_cells(data_folder, file, modalities, names, latent):
    """One in ten cells held out; the model of both modalities is not worse than one model of each."""
    mdata = pytest.importorskip("mudata").read_h5mu(data_folder / "multiomics_vae" / f"{file}.h5mu")
    counts = [sp.csr_array(mdata[name].X, dtype=np.float32) for name in modalities]
    hidden = np.zeros(mdata.n_obs, bool)
    hidden[np.random.default_rng(0).permutation(mdata.n_obs)[: mdata.n_obs // 10]] = True
    noise = np.random.default_rng(0).normal(size=(5, hidden.sum(), latent)).astype(np.float32)

    def held_out_loss(chosen):
        config = MultiOmicsVAEConfig(
            modality_dims=tuple(counts[m].shape[1] for m in chosen),
            likelihoods=tuple(names[m] for m in chosen),
            latent_dim=latent,
        )
        vae = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))
        vae.fit_matrices([counts[m][~hidden] for m in chosen])
        data = {key: counts[m][hidden].toarray() for key, m in zip(vae.required_keys, chosen, strict=True)}
        return np.mean([float(vae.loss({**data, "noise": draws})) for draws in noise])

    assert held_out_loss((0, 1)) <= held_out_loss((0,)) + held_out_loss((1,))


def test_every_parameter_has_a_gradient(simulated):
    # Of the other likelihoods the decoders have no parameters that these have not.
    names = ("zero_inflated_negative_binomial", "protein_mixture", "gaussian")
    vae = make(dims=(GENES, PEAKS, PEAKS), likelihoods=names, modality_weight_mode="learnable")
    rna, atac = simulated[0]
    matrices = [rna, atac, atac]
    vae.initialize(matrices)
    data = {f"modality_{m}_counts": matrix for m, matrix in enumerate(matrices)}
    gradient = nnx.grad(lambda op: op.loss(data))(vae)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.isfinite(np.asarray(leaf)).all(), path
        assert np.abs(np.asarray(leaf)).max() > 0, jax.tree_util.keystr(path)


def test_gaussian_values_are_fitted_alike_from_dense_and_from_sparse_rows(simulated, monkeypatch):
    rng = np.random.default_rng(0)
    rna, atac = (sp.csr_matrix(matrix, dtype=np.float32) for matrix in simulated[0])
    values = np.log1p(rna.toarray()) @ rng.normal(size=(GENES, 40)) + rng.normal(size=(rna.shape[0], 40))
    values = values.astype(np.float32)
    found = []
    for matrix, share in ((values, 0.5), (sp.csr_matrix(values), 0.5), (sp.csr_matrix(values), 2.0)):
        monkeypatch.setattr(reading, "_DENSE_SHARE", share)
        vae = make(dims=(40, PEAKS), likelihoods=("gaussian", "multinomial"))
        report = vae.fit_matrices([matrix, atac], max_epochs=2)
        found.append((report.history["validation_loss"], vae.embed([matrix, atac]).mean))
    np.testing.assert_array_equal(found[0][1], found[1][1])  # both are dense
    np.testing.assert_allclose(found[0][0], found[2][0], rtol=1e-4)
    np.testing.assert_allclose(found[0][1], found[2][1], atol=2e-3)
    matrix = values.copy()
    matrix[3, 4] = np.nan
    with pytest.raises(ValueError, match="matrix 0 holds NaN"):
        make(dims=(40, PEAKS), likelihoods=("gaussian", "multinomial")).fit_matrices([matrix, atac], max_epochs=1)


def test_gradient_by_counts_matches_finite_differences(started, data):
    def loss(scale):
        return started.loss({**data, "rna_counts": jnp.asarray(data["rna_counts"]) * scale})

    step = 1e-2
    slope = (loss(1.0 + step) - loss(1.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(1.0), slope, rtol=2e-2)


# --- fusions ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fused(simulated):
    """Posteriors of one start under each fusion; a quarter of the cells has one modality."""
    present = np.ones((CELLS, 2), bool)
    present[:20, 0], present[20:40, 1] = False, False
    operators, encodings = {}, {}
    for fusion in ("poe", "moe", "mean"):
        vae = make(fusion=fusion)
        vae.initialize(simulated[0], present=present)
        operators[fusion], encodings[fusion] = vae, vae.encode(simulated[0], present=present)
    alone = operators["poe"].encode(simulated[0], present=np.eye(2, dtype=bool)[np.arange(CELLS) % 2])
    other = operators["poe"].encode(simulated[0], present=np.eye(2, dtype=bool)[1 - np.arange(CELLS) % 2])
    first = np.arange(CELLS)[:, None] % 2 == 0
    variances = np.stack(
        [np.where(first, alone.variance, other.variance), np.where(first, other.variance, alone.variance)]
    )
    means = np.stack([np.where(first, alone.mean, other.mean), np.where(first, other.mean, alone.mean)])
    return present, operators, encodings, means, variances


def test_fusions_are_those_of_the_posteriors_from_each_modality_alone(fused):
    present, _, encodings, means, variances = fused
    both, single = present.all(1), ~present.all(1)
    own = present[:, 1].astype(int)
    for encoding in encodings.values():
        rows = np.flatnonzero(single)
        np.testing.assert_allclose(encoding.mean[rows], means[own[rows], rows], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(encoding.variance[rows], variances[own[rows], rows], rtol=1e-4)
    m, v = means[:, both].astype(float), variances[:, both].astype(float)
    np.testing.assert_allclose(encodings["moe"].mean[both], m.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        encodings["moe"].variance[both], (v + m**2).mean(0) - m.mean(0) ** 2, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(encodings["mean"].mean[both], m.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encodings["mean"].variance[both], v.sum(0) / 4, rtol=1e-4)
    np.testing.assert_allclose(encodings["moe"].shares[both], 0.5, rtol=1e-6)


def test_divergence_of_the_mixture_is_that_of_the_mixture(fused, simulated):
    """Monte Carlo in numpy against the score; the Gaussian of the same moments has another divergence."""
    present, operators, encodings, means, variances = fused
    rng, draws = np.random.default_rng(0), 400
    number = present.sum(1)

    def log_density(points):
        parts = norm.logpdf(points[None], means[:, None], np.sqrt(variances)[:, None]).sum(-1)
        parts = np.where(present.T[:, None], parts, -np.inf)
        return np.logaddexp.reduce(parts, axis=0) - np.log(number)

    chosen = np.where(number == 2, rng.integers(0, 2, (draws, CELLS)), present[:, 1].astype(int))
    cells = np.arange(CELLS)
    points = means[chosen, cells] + np.sqrt(variances[chosen, cells]) * rng.normal(size=(draws, CELLS, 2))
    expected = log_density(points) - norm.logpdf(points).sum(-1)
    found = operators["moe"].score(simulated[0], present=present)["kl"]
    error = expected.std(0) / np.sqrt(draws)
    assert np.abs(found - expected.mean(0)).mean() < 2 * error.mean() + 0.05
    assert abs(found.mean() - expected.mean()) < 4 * expected.mean(1).std() / np.sqrt(draws) + 0.02
    mean, variance = encodings["moe"].mean, encodings["moe"].variance
    gaussian = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(1)
    assert (found - gaussian)[present.all(1)].mean() > 0.1


def test_bound_of_the_mixture_draws_from_one_modality_for_each_cell(fused, simulated, data):
    """With the noise 0 each draw is the mean of one of the two posteriors, as often of the one as of the other."""
    _, operators, _, means, _ = fused
    vae, noise = operators["moe"], np.zeros((CELLS, 2), np.float32)
    complete = np.ones((CELLS, 2), bool)

    @jax.jit
    def draw(state):
        operator = nnx.merge(nnx.graphdef(vae), state)
        cells = operator._dense_cells({key: jnp.asarray(value) for key, value in data.items()})[1]
        opinions = posterior.experts(posterior.stack_encoders(operator), cells)
        return posterior.draw("moe", opinions, complete, noise, jax.random.key(0))

    drawn, divergence = draw(nnx.state(vae))
    distance = np.abs(np.asarray(drawn)[None] - means).max(-1)
    assert (distance.min(0) < 1e-3).all()
    assert abs((distance.argmin(0) == 0).mean() - 0.5) < 0.02
    # The loss is that of these draws: likelihoods at them, and their estimate of the divergence.
    total = float(divergence.mean()) + sum(float(loss) for loss, _ in by_modality(vae, simulated[0], drawn))
    assert float(vae.loss({**data, "noise": noise})) == pytest.approx(total, rel=1e-4)


# --- held-out cells ---------------------------------------------------------------------------------------------------


def test_held_out_cells_leave_half_of_each_batch_and_modality():
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1, 2], [60, 39, 1])
    present = np.ones((100, 2), bool)
    present[3:, 1] = False
    for fraction in (0.1, 0.6):
        held_out = fitting.hold_out(present, batch, fraction, rng)
        assert (np.diff(held_out) > 0).all()
        if fraction == 0.1:
            assert len(held_out) == 10
        kept = np.delete(np.arange(100), held_out)
        assert (np.bincount(batch[kept], minlength=3) >= [30, 20, 1]).all()
        assert (present[kept].sum(0) >= [50, 2]).all()


def test_the_start_does_not_see_held_out_cells(simulated, monkeypatch):
    """Whatever the held-out cells hold, training starts from the same parameters."""
    held_out = fitting.hold_out(np.ones((CELLS, 2), bool), np.zeros(CELLS, int), 0.1, np.random.default_rng(5))
    spoiled = [matrix.copy() for matrix in simulated[0]]
    for matrix in spoiled:
        matrix[held_out] = matrix[held_out][:, ::-1] * 3
    starts = []

    def look(operator, data, **options):
        starts.append([np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(operator, nnx.Param))])
        assert len(options["validation"]) == len(held_out)
        return FitReport({}, False, 0, 0.0)

    monkeypatch.setattr("diffbio_sc.operators.multiomics.multiomics_vae.operator.train", look)
    for matrices in (simulated[0], spoiled):
        make().fit_matrices(matrices, max_epochs=1, rng=5)
    for one, other in zip(*starts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_cells_may_each_have_two_of_three_modalities():
    """No cell has all, none of the modalities is in all cells; the factors are found all the same."""
    matrices, factors = simulate(cells=300, dims=(40, 30, 20), depth=(400.0, 300.0, 200.0))
    present = np.ones((300, 3), bool)
    present[np.arange(300), np.arange(300) % 3] = False
    vae = make((40, 30, 20))
    report = vae.fit_matrices([matrix * present[:, [m]] for m, matrix in enumerate(matrices)], present=present,
                              max_epochs=3)  # fmt: skip
    assert np.isfinite(report.history["validation_loss"]).all()
    latent = vae.encode([matrix * present[:, [m]] for m, matrix in enumerate(matrices)], present=present).mean
    design = np.column_stack([latent, np.ones(300)])
    for factor in factors.T:
        fitted = design @ np.linalg.lstsq(design, factor, rcond=None)[0]
        assert np.corrcoef(fitted, factor)[0, 1] > LEAST_CORRELATION


def test_the_prior_of_the_slopes_counts_all_cells(simulated, monkeypatch):
    """Also those beyond the number that the start is computed from."""
    monkeypatch.setattr("diffbio_sc.operators.multiomics.multiomics_vae.operator._FACTOR_CELLS", 100)
    vae = make()
    vae.initialize(simulated[0])
    assert float(vae.n_cells[...]) == CELLS


def test_entries_of_a_few_cells_more_or_fewer_have_room_in_the_same_arrays():
    """Of 590 and of 600 cells of equal depth, where the numbers of their entries lie in two buckets."""
    rng = np.random.default_rng(0)
    for density in (0.367, 0.458):
        matrix = sp.csr_array((rng.random((600, 300)) < density).astype(np.float32))
        assert bucket_size(matrix[:590].nnz) < bucket_size(matrix.nnz)
        vae = make((300, 300))
        shapes = set()
        for cells in (590, 600):
            parts = [matrix[:cells], matrix[:cells]]
            present, batch = np.ones((cells, 2), bool), np.zeros(cells, int)
            data, keys, *_ = fitting.training_data(vae, parts, present, batch, np.arange(60), 64)
            samples, _ = place_samples(data, keys, cells, placement=place_training(64))
            shapes.add(tuple(np.shape(samples[f"counts_{m}"].rows.indices) for m in range(2)))
            assert np.shape(samples["counts_0"].rows.indices)[0] >= parts[0].nnz
        assert len(shapes) == 1


def proteins(seed=0, cells=300):
    """Two batches; proteins that a factor switches on, in the first alone."""
    (genes, _), factors = simulate(seed, cells=cells)
    rng = np.random.default_rng(seed + 1)
    batch = (np.arange(cells) % 3 == 0).astype(np.int32)
    genes = np.where(batch[:, None] == 1, rng.poisson(genes * rng.lognormal(0, 0.8, GENES)), genes).astype(np.float32)
    rates = 20 + 400 * (factors @ rng.normal(size=(2, 8)) > 0.5)
    return genes, rng.poisson(rates).astype(np.float32), rates, batch


def test_proteins_are_imputed_by_a_regression_that_beats_the_decoder():
    genes, counts, rates, batch = proteins()
    present = np.stack([np.ones(300, bool), batch == 0], axis=1)
    present[::4, 1] = False
    vae = make((GENES, 8), likelihoods=("negative_binomial", "protein_mixture"), n_batches=2)
    matrices = [genes, counts * present[:, [1]]]
    vae.initialize(matrices, present=present, batch=batch)
    imputed, log_size = vae.impute(1, matrices, present=present, batch=batch)
    decoded = vae.expected(1, vae.encode(matrices, present=present, batch=batch).mean, batch=batch, log_size=log_size)

    def error(values, cells):
        return ((np.log1p(values[cells]) - np.log1p(rates[cells])) ** 2).mean()

    spread, alone = np.log1p(rates).var(0).mean(), np.stack([np.ones(300, bool), np.zeros(300, bool)], axis=1)
    place = vae.embed(matrices, present=alone, batch=batch).mean
    near = ((place[:, None] - place[present[:, 1]]) ** 2).sum(-1).argsort(1)[:, :15]
    neighbors = np.expm1(np.log1p(counts[present[:, 1]])[near].mean(1))
    for code in (0, 1):  # cells of the first batch that lack the proteins, and a batch in which no cell has them
        hidden = ~present[:, 1] & (batch == code)
        assert error(imputed, hidden) < 0.75 * spread
        assert code == 1 or error(imputed, hidden) < error(neighbors, hidden)
        assert error(imputed, hidden) < 0.8 * error(decoded, hidden)
    # Cells that have proteins are told better than by their own counts, by their genes, and by the decoder.
    has = present[:, 1]
    by_genes, _ = vae.impute(1, matrices, present=alone, batch=batch)
    assert error(imputed, has) < 0.9 * min(error(counts, has), error(by_genes, has), error(decoded, has))
    few, _ = vae.impute(1, matrices, present=present, batch=batch, columns=np.array([5, 2]))
    np.testing.assert_allclose(few, imputed[:, [5, 2]], rtol=1e-6)
    # The twin on arrays.
    regression, hidden = vae.regressions[0], ~present[:, 1]
    place = vae.encode(matrices, present=present, batch=batch).mean[hidden] * np.asarray(vae.axis_lengths[...])
    sizes = np.column_stack([np.log(genes.sum(1)), np.full(300, np.nan)])[hidden]
    twin = regression.imputed(jnp.asarray(place), jnp.asarray(sizes, jnp.float32), jnp.asarray(batch[hidden]))
    np.testing.assert_allclose(np.log1p(twin), np.log1p(imputed[hidden]), rtol=0.02, atol=0.02)


def test_measured_proteins_are_weighed_against_what_is_predicted():
    """Held to the expected level of a normal level and a count, both observed with noise of known variance."""
    rng = np.random.default_rng(0)
    place, cells = rng.normal(size=(400, 2)), 400
    level = 4.0 + place @ rng.normal(size=(2, 3)) * 0.3 + rng.normal(size=(cells, 3)) * np.array([0.05, 0.4, 0.8])
    counts = rng.poisson(np.expm1(level)).astype(np.float32)
    config = MultiOmicsVAEConfig(
        modality_dims=(5, 3), latent_dim=2, likelihoods=("negative_binomial", "protein_mixture")
    )
    regression = Regression(1, config)
    sizes, batch = np.full((cells, 2), np.nan), np.zeros(cells, int)
    regression.fit(place, sizes, batch, np.arange(cells), counts, np.random.default_rng(0))
    between, total = np.asarray(regression.spread[...])
    np.testing.assert_allclose(np.sqrt(between[1:]), [0.4, 0.8], rtol=0.15)
    np.testing.assert_allclose(total, level.var(0), rtol=0.1)
    predicted = regression.imputed(place, sizes, batch, library=np)
    is_alone = np.arange(cells) < 10
    found = np.log1p(regression.measured(counts, predicted, is_alone, library=np))
    for cell, variance, f in ((3, total, np.log1p(counts).mean(0)), (20, between, np.log1p(predicted[20]))):
        mean = np.expm1(f)
        weight = variance / (variance + mean / (1 + mean) ** 2)
        np.testing.assert_allclose(found[cell], f + weight * (np.log1p(counts[cell]) - f), rtol=1e-4)
    rest, errors = ~is_alone, []
    for values in (found, np.log1p(counts), np.log1p(predicted)):
        errors.append(((values - level)[rest] ** 2).mean(0))
    assert (errors[0] < 1.02 * np.minimum(errors[1], errors[2])).all()
    twin = regression.measured(jnp.asarray(counts), jnp.asarray(predicted), jnp.asarray(is_alone))
    np.testing.assert_allclose(np.log1p(twin), found, rtol=1e-4)


def test_embedding_lays_batches_onto_each_other():
    genes, counts, _, batch = proteins()
    vae = make((GENES, 8), likelihoods=("negative_binomial", "protein_mixture"), n_batches=2)
    present = np.stack([np.ones(300, bool), batch == 0], axis=1)
    vae.initialize([genes, counts], present=present, batch=batch)
    encoding = vae.encode([genes, counts], present=present, batch=batch)
    place = vae.embed([genes, counts], present=present, batch=batch).mean
    apart = [np.linalg.norm((z[batch == 0].mean(0) - z[batch == 1].mean(0)) / z.std(0)) for z in (encoding.mean, place)]
    assert apart[1] < 0.15
    twin = vae.embedding(jnp.asarray(encoding.mean), jnp.asarray(batch))
    np.testing.assert_allclose(twin, place, rtol=1e-3, atol=1e-3)


def test_saved_operator_is_the_same(fitted, data, tmp_path):
    vae, _ = fitted
    vae.save(tmp_path / "vae.npz")
    loaded = DifferentiableMultiOmicsVAE.load(tmp_path / "vae.npz")
    first, _, _ = vae.apply(data)
    second, _, _ = loaded.apply(data)
    for key in ("joint_latent", "rna_reconstructed", "elbo_loss"):
        np.testing.assert_array_equal(first[key], second[key])


def test_traversal_moves_one_dimension(fitted):
    vae, _ = fitted
    moved = vae.traverse(0, np.zeros(2), 1, [-1.0, 0.0, 1.0])
    np.testing.assert_allclose(moved.sum(1), 1.0, rtol=1e-4)
    assert np.abs(moved[0] - moved[2]).max() > 1e-3


def test_bad_input_is_refused(started, simulated, data):
    matrices, _ = simulated
    with pytest.raises(ValueError, match="config.modality_dims"):
        started.apply({**data, "rna_counts": data["rna_counts"][:, 1:]})
    with pytest.raises(ValueError, match="present"):
        started.apply({**data, "present": np.ones((CELLS, 3))})
    with pytest.raises(ValueError, match="matrix 1"):
        started.encode([matrices[0], matrices[1][:, 1:]])
    with pytest.raises(ValueError, match="batch"):
        started.encode(matrices, batch=np.full(CELLS, 3))


# --- the specification's own example ----------------------------------------------------------------------------------


def test_quick_start_of_the_specification():
    generator = np.random.default_rng(0)
    rna_expression = generator.poisson(1.0, (12, 2000))
    atac_counts = generator.poisson(0.1, (12, 500))
    config = MultiOmicsVAEConfig(
        modality_dims=[2000, 500],
        latent_dim=10,
        hidden_dim=64,
        modality_weight_mode="equal",
    )
    rngs = nnx.Rngs(42)
    vae = DifferentiableMultiOmicsVAE(config, rngs=rngs)
    data = {"rna_counts": rna_expression, "atac_counts": atac_counts}
    with pytest.warns(NotFittedWarning):
        result, state, metadata = vae.apply(data, {}, None)
    assert result["joint_latent"].shape == (12, 10)
    assert result["rna_reconstructed"].shape == (12, 2000)
    assert result["atac_reconstructed"].shape == (12, 500)
    assert result["elbo_loss"].shape == ()
    assert np.isfinite(float(result["elbo_loss"]))
