"""Likelihoods of the modalities, dense and over the entries of sparse rows, held to scipy in float64."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import digamma, expit, gammaln, log_softmax, logsumexp
from scipy.stats import bernoulli, multinomial, nbinom, norm, poisson

from diffbio_sc._compiled import full_products
from diffbio_sc.numerics.counts import likelihoods
from diffbio_sc.numerics.counts.likelihood_choice import ModalitySummary, choose_likelihood
from diffbio_sc.numerics.counts.likelihoods import LIKELIHOODS, sample_columns
from diffbio_sc.numerics.counts.sparse_rows import gather, place_sparse

CELLS, FEATURES = 12, 50


compiled_gather = jax.jit(gather, static_argnames="capacity")


def to_entries(counts):
    return compiled_gather(place_sparse(sp.csr_matrix(counts)), np.arange(len(counts)), capacity=counts.size)


@pytest.fixture(scope="module")
def counts():
    random = np.random.default_rng(0)
    means = np.exp(random.normal(-1, 2.5, (CELLS, FEATURES)))
    counts = random.poisson(random.gamma(0.5, means / 0.5)).astype(np.float32)
    counts[3] = 0  # a cell without counts
    return counts


@pytest.fixture(scope="module")
def parameters():
    """Parameters of every likelihood by name, in float32."""
    random = np.random.default_rng(1)

    def draw(*shape, centre=0.0, spread=1.0):
        return random.normal(centre, spread, shape).astype(np.float32)

    both = (CELLS, FEATURES)
    log_theta = draw(FEATURES, spread=2.0)
    return {
        "negative_binomial": {"log_mean": draw(*both, spread=3.0), "log_inverse_dispersion": log_theta},
        "zero_inflated_negative_binomial": {
            "log_mean": draw(*both, spread=3.0),
            "log_inverse_dispersion": log_theta,
            "dropout_logits": draw(*both, spread=4.0),
        },
        "poisson": {"log_mean": draw(*both, spread=2.0)},
        "multinomial": {"logits": draw(*both, spread=2.0)},
        "bernoulli": {"logits": draw(*both, spread=5.0)},
        "protein_mixture": {
            "log_background": draw(*both, spread=2.0),
            "log_excess": draw(*both, spread=3.0),
            "log_inverse_dispersion": log_theta,
            "background_logits": draw(*both, spread=4.0),
        },
        "gaussian": {"mean": draw(*both, spread=2.0), "log_variance": draw(FEATURES)},
    }


def negative_binomial_64(x, log_mean, log_theta):
    theta = np.exp(np.float64(log_theta))
    return nbinom.logpmf(x, theta, theta / (theta + np.exp(np.float64(log_mean))))


def precise_negative_binomial_64(x, mean, theta):
    # Unlike scipy's nbinom, precise for theta far above the mean.
    x = np.float64(x)
    log_share = np.where(x > 0, np.log(mean), 0.0) - np.log1p(mean / theta) - np.log(theta)
    return gammaln(x + theta) - gammaln(theta) - gammaln(x + 1) + x * log_share - theta * np.log1p(mean / theta)


def inflated_64(x, log_mean, log_inverse_dispersion, dropout_logits):
    dropout = expit(dropout_logits.astype(float))
    count = (1 - dropout) * np.exp(negative_binomial_64(x, log_mean, log_inverse_dispersion))
    with np.errstate(divide="ignore"):  # a probability below the smallest number
        return np.log(np.where(x == 0, dropout, 0) + count).sum(1)


def mixture_parts_64(x, log_background, log_excess, log_inverse_dispersion, background_logits):
    background = log_background.astype(float)
    foreground = background + np.log1p(np.exp(log_excess.astype(float)))
    low = negative_binomial_64(x, background, log_inverse_dispersion) + np.log(expit(background_logits.astype(float)))
    high = negative_binomial_64(x, foreground, log_inverse_dispersion) + np.log(expit(-background_logits.astype(float)))
    return low, high


def multinomial_64(x, logits):
    probability = np.exp(log_softmax(logits.astype(float), axis=1))
    return np.array([multinomial.logpmf(row, row.sum(), p / p.sum()) for row, p in zip(x, probability, strict=True)])


REFERENCES = {
    "negative_binomial": lambda x, log_mean, log_inverse_dispersion: negative_binomial_64(
        x, log_mean, log_inverse_dispersion
    ).sum(1),
    "zero_inflated_negative_binomial": inflated_64,
    "poisson": lambda x, log_mean: poisson.logpmf(x, np.exp(log_mean.astype(float))).sum(1),
    "multinomial": multinomial_64,
    "bernoulli": lambda x, **p: bernoulli.logpmf(x > 0, expit(p["logits"].astype(float))).sum(1),
    "protein_mixture": lambda x, **p: np.logaddexp(*mixture_parts_64(x, **p)).sum(1),
    "gaussian": lambda x, mean, log_variance: norm.logpdf(x, mean, np.exp(0.5 * log_variance.astype(float))).sum(1),
}


@functools.cache
def compiled(name):
    """Values for each cell, and the gradients of their sum: ``compiled(name)(parameters, counts)``."""
    function = getattr(likelihoods, name)

    def total(parameters, counts):
        values = function(counts, **parameters)
        return values.sum(), values

    def values_and_gradients(parameters, counts):
        (_, values), gradients = jax.value_and_grad(total, has_aux=True)(parameters, counts)
        return values, gradients

    return jax.jit(values_and_gradients)


def test_every_likelihood_has_a_reference():
    assert set(REFERENCES) == set(LIKELIHOODS)


@pytest.mark.parametrize("form", ["dense", "entries"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_likelihood_equals_scipy(name, form, counts, parameters):
    values = counts + np.float32(0.25) * (counts > 0) if name == "gaussian" else counts
    expected = REFERENCES[name](values.astype(float), **parameters[name])
    found, _ = compiled(name)(parameters[name], values if form == "dense" else to_entries(values))
    assert found.shape == (CELLS,)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_of_both_forms_agree_and_reach_every_parameter(name, counts, parameters):
    _, dense = compiled(name)(parameters[name], counts)
    _, entries = compiled(name)(parameters[name], to_entries(counts))
    for key in parameters[name]:
        assert np.isfinite(dense[key]).all()
        assert (np.asarray(dense[key]) != 0).any()
        size = np.abs(dense[key]).max()
        np.testing.assert_allclose(entries[key], dense[key], rtol=1e-4, atol=3e-6 * size)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_equal_finite_differences_of_the_reference(name, counts, parameters):
    _, gradient = compiled(name)(parameters[name], to_entries(counts))
    random = np.random.default_rng(2)
    for key, value in parameters[name].items():
        direction = random.normal(size=value.shape)
        above, below = (
            REFERENCES[name](counts.astype(float), **{**parameters[name], key: value.astype(float) + step * direction})
            for step in (1e-5, -1e-5)
        )
        expected = (above - below).sum() / 2e-5
        scale = np.abs(np.asarray(gradient[key]) * direction).sum()
        np.testing.assert_allclose((gradient[key] * direction).sum(), expected, rtol=1e-4, atol=1e-5 * scale)


def rows(values):
    """As many rows of one feature as the grid of extremes has, which spares compiling."""
    return np.resize(values, (125, 1)).astype(np.float32)


def extreme_grid():
    x, mean, theta = np.meshgrid(
        [0.0, 1.0, 3.0, 150.0, 20_000.0], [1e-8, 1e-3, 1.0, 1e3, 1e6], [1e-4, 1e-2, 1.0, 1e2, 1e6], indexing="ij"
    )
    log_mean, log_theta = np.log(mean).astype(np.float32), np.log(theta).astype(np.float32)
    return x.reshape(-1, 1).astype(np.float32), log_mean.reshape(-1, 1), log_theta.reshape(-1, 1)


@pytest.mark.parametrize("form", ["dense", "entries"])
def test_negative_binomial_is_precise_at_extremes(form):
    x, log_mean, log_theta = extreme_grid()
    mean, theta = np.exp(log_mean.astype(float)), np.exp(log_theta.astype(float))
    given = x if form == "dense" else to_entries(x)
    parameters = {"log_mean": log_mean, "log_inverse_dispersion": log_theta}
    found, gradient = compiled("negative_binomial")(parameters, given)
    np.testing.assert_allclose(found, precise_negative_binomial_64(x, mean, theta)[:, 0], rtol=1e-5)
    expected = theta * (x - mean) / (theta + mean)
    np.testing.assert_allclose(gradient["log_mean"], expected, rtol=1e-4, atol=1e-6)
    expected = theta * (digamma(x + theta) - digamma(theta) - np.log1p(mean / theta) + (mean - x) / (theta + mean))
    # Terms of the size of the count or the mean cancel where theta is large.
    allowed = 1e-4 * np.abs(expected) + 1e-6 * (x + mean * theta / (theta + mean))
    assert (np.abs(gradient["log_inverse_dispersion"] - expected) <= allowed).all()


def test_large_counts_near_their_mean_keep_their_digits():
    x = rows([20_000.0, 20_000.0, 300_000.0])
    log_mean, log_theta = rows(np.log([20_001.0, 19_500.0, 300_300.0])), rows(np.log([1e6, 50.0, 1e5]))
    found, _ = compiled("negative_binomial")({"log_mean": log_mean, "log_inverse_dispersion": log_theta}, x)
    expected = precise_negative_binomial_64(x, np.exp(log_mean.astype(float)), np.exp(log_theta.astype(float)))
    np.testing.assert_allclose(found, expected[:, 0], rtol=1e-5)
    found, _ = compiled("poisson")({"log_mean": log_mean}, x)
    expected = poisson.logpmf(x.astype(float), np.exp(log_mean.astype(float)))
    np.testing.assert_allclose(found, expected[:, 0], rtol=1e-5)


@pytest.mark.parametrize("form", ["dense", "entries"])
@pytest.mark.parametrize("name", ["zero_inflated_negative_binomial", "protein_mixture", "poisson"])
def test_values_and_gradients_are_finite_at_extremes(name, form):
    x, log_mean, log_theta = extreme_grid()
    for logit in (-40.0, 40.0):
        logits = np.full_like(x, logit)
        parameters = {
            "zero_inflated_negative_binomial": {
                "log_mean": log_mean,
                "log_inverse_dispersion": log_theta,
                "dropout_logits": logits,
            },
            "protein_mixture": {
                "log_background": log_mean,
                "log_excess": logits / 3,
                "log_inverse_dispersion": log_theta,
                "background_logits": logits,
            },
            "poisson": {"log_mean": log_mean},
        }[name]
        given = x if form == "dense" else to_entries(x)
        values, gradients = compiled(name)(parameters, given)
        assert np.isfinite(values).all()
        for gradient in gradients.values():
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["negative_binomial", "zero_inflated_negative_binomial", "poisson"])
def test_a_mean_far_out_of_range_is_finite_with_a_gradient_that_leads_back(name):
    x = rows([5.0, 0.0, 5.0])
    parameters = {"log_mean": rows([-95.0, 60.0, 60.0])}
    if name != "poisson":
        parameters["log_inverse_dispersion"] = rows([0.0])
    if name == "zero_inflated_negative_binomial":
        parameters["dropout_logits"] = rows([-90.0])
    for given in (x, to_entries(x)):
        values, gradients = compiled(name)(parameters, given)
        assert np.isfinite(values).all()
        gradient = np.asarray(gradients["log_mean"])
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient[0], 5, rtol=1e-4)
        assert (gradient[1:3] < -0.5).all()


def test_bernoulli_is_exact_where_probabilities_round_to_0_or_1():
    logits = np.array([[90.0, -90.0, 30.0, -30.0]], np.float32)
    counts = np.array([[0.0, 2.0, 0.0, 1.0]], np.float32)
    expected = -90 - 90 - 30 - 30
    for given in (counts, to_entries(counts)):
        np.testing.assert_allclose(compiled("bernoulli")({"logits": logits}, given)[0], [expected], rtol=1e-6)


def test_dispersion_for_each_cell_and_feature(counts, parameters):
    values = parameters["negative_binomial"]
    by_batch = np.stack([values["log_inverse_dispersion"], values["log_inverse_dispersion"] + 1])
    chosen = by_batch[np.arange(CELLS) % 2]
    expected = negative_binomial_64(counts, values["log_mean"], chosen).sum(1)
    for given in (counts, to_entries(counts)):
        found, _ = compiled("negative_binomial")(
            {"log_mean": values["log_mean"], "log_inverse_dispersion": chosen}, given
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_parameter_of_another_shape_is_refused(counts):
    with pytest.raises(ValueError, match=r"broadcasts to \(cells, features\) \(12, 50\), found \(50, 12\)"):
        likelihoods.at_entries(np.zeros((50, 12), np.float32), to_entries(counts))


def test_likelihoods_work_under_vmap(counts, parameters):
    entries, values = to_entries(counts), parameters["negative_binomial"]
    several = np.stack([values["log_mean"], values["log_mean"] + 1])
    function = jax.jit(jax.vmap(likelihoods.negative_binomial, (None, 0, None)))
    found = function(entries, several, values["log_inverse_dispersion"])
    for position in range(2):
        expected = negative_binomial_64(counts, several[position], values["log_inverse_dispersion"]).sum(1)
        np.testing.assert_allclose(found[position], expected, rtol=1e-5)


def test_entries_beyond_the_capacity_give_nan_not_a_wrong_number(counts, parameters):
    entries = to_entries(counts)
    exceeded = compiled_gather(place_sparse(sp.csr_matrix(counts)), np.arange(CELLS), capacity=10).values
    assert np.isnan(exceeded).all()
    entries = dataclasses.replace(entries, values=np.full(entries.values.shape, np.nan, np.float32))
    for name in LIKELIHOODS:
        found, _ = compiled(name)(parameters[name], entries)
        np.testing.assert_array_equal(np.isnan(found), counts.any(1), err_msg=name)


# --- sampled multinomial ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear_decoder():
    random = np.random.default_rng(3)
    latent, weights = random.normal(size=(CELLS, 4)), random.normal(size=(FEATURES, 4))
    return tuple(values.astype(np.float32) for values in (latent, weights, random.normal(size=FEATURES)))


@pytest.mark.parametrize("sampled", [1, 7, 8, 49, 50, 90])
def test_sampled_columns_are_one_of_each_run(sampled):
    draw = sample_columns(jax.random.key(0), FEATURES, sampled)
    columns = np.asarray(draw.columns)
    assert len(columns) <= sampled
    np.testing.assert_array_equal(columns // draw.run_length, np.arange(len(columns)))
    assert columns.max() < FEATURES


@full_products()
def test_a_sample_of_all_columns_is_the_multinomial(counts, linear_decoder):
    latent, weights, intercept = linear_decoder
    everything = sample_columns(jax.random.key(0), FEATURES, FEATURES)

    def exact(latent, weights, intercept):
        return likelihoods.multinomial(counts, latent @ weights.T + intercept)

    entries = to_entries(counts)

    def sampled(latent, weights, intercept):
        return likelihoods.sampled_multinomial(entries, latent, weights, intercept, everything)

    def with_gradient(function):
        totals = lambda *values: (function(*values).sum(), function(*values))  # noqa: E731
        (_, values), gradients = jax.jit(jax.value_and_grad(totals, argnums=(0, 1, 2), has_aux=True))(*linear_decoder)
        return values, gradients

    values, gradients = with_gradient(sampled)
    expected_values, expected_gradients = with_gradient(exact)
    np.testing.assert_allclose(values, expected_values, rtol=1e-5, atol=1e-5)
    for found, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_the_sampled_normaliser_is_unbiased(counts, linear_decoder):
    latent, weights, intercept = linear_decoder
    entries = to_entries(counts)
    logits = latent.astype(float) @ weights.T + intercept

    def one(key):
        sampled = sample_columns(key, FEATURES, 8)
        return likelihoods.sampled_multinomial(entries, *linear_decoder, sampled)

    draws = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 3000)), float)
    depth = counts.sum(1)
    used = depth > 0
    coefficient = gammaln(depth + 1.0) - gammaln(counts + 1.0).sum(1)
    log_normaliser = ((counts * logits).sum(1) + coefficient - draws)[:, used] / depth[used]
    ratio = np.exp(log_normaliser - logsumexp(logits, axis=1)[used])
    error = (ratio.mean(0) - 1) / (ratio.std(0) / np.sqrt(3000) + 1e-4)
    assert np.abs(error).max() < 4.5
    assert (ratio.std(0) > 0.01).any()


# --- expectations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name not in ("gaussian", "bernoulli")])
def test_expected_counts_equal_sums_over_the_probabilities(name):
    values = {
        "log_mean": np.log([[0.01, 3.0, 40.0]]),
        "log_inverse_dispersion": np.log([2.0, 5.0, 8.0]),
        "dropout_logits": np.array([[0.5, -1.0, 1.0]]),
        "log_background": np.log([[0.1, 2.0, 5.0]]),
        "log_excess": np.array([[1.0, 2.0, 2.0]]),
        "background_logits": np.array([[0.5, -1.0, 1.0]]),
        "logits": np.array([[0.5, -1.0, 1.0]]),
    }
    keys = {
        "negative_binomial": ["log_mean", "log_inverse_dispersion"],
        "zero_inflated_negative_binomial": ["log_mean", "log_inverse_dispersion", "dropout_logits"],
        "poisson": ["log_mean"],
        "multinomial": ["logits"],
        "protein_mixture": ["log_background", "log_excess", "log_inverse_dispersion", "background_logits"],
    }[name]
    parameters = {key: values[key].astype(np.float32) for key in keys}
    x = np.arange(1200.0)
    depth = np.array([60.0], np.float32)
    counts = likelihoods.expected_counts(name, depth=depth, **parameters)
    logarithms = likelihoods.expected_log1p(name, depth=depth, **parameters)
    for feature in range(3):
        if name == "multinomial":
            # Each count of a multinomial draw is binomial.
            probability = np.exp(log_softmax(values["logits"][0]))[feature]
            pair = np.log([[probability, 1 - probability]])
            first = np.arange(61.0)
            draws = np.stack([first, 60 - first], axis=1)
            mass = np.r_[np.exp(multinomial_64(draws, np.repeat(pair, 61, axis=0))), np.zeros(1200 - 61)]
        else:
            column = {key: np.atleast_2d(value)[:, feature : feature + 1] for key, value in parameters.items()}
            mass = np.exp([REFERENCES[name](np.array([[count]]), **column)[0] for count in x])
        assert abs(mass.sum() - 1) < 1e-6
        np.testing.assert_allclose(counts[0, feature], mass @ x, rtol=1e-5)
        np.testing.assert_allclose(logarithms[0, feature], mass @ np.log1p(x), rtol=1e-5)


def test_expected_log1p_of_large_and_small_means():
    log_mean = np.log(np.array([[1e-6, 1e5]])).astype(np.float32)
    found = np.asarray(likelihoods.expected_log1p("poisson", log_mean=log_mean))
    np.testing.assert_allclose(found[0, 0], 1e-6 * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(found[0, 1], np.log(1e5), rtol=1e-5)


def test_expected_counts_of_bernoulli_and_gaussian(parameters):
    probability = expit(parameters["bernoulli"]["logits"].astype(float))
    found = likelihoods.expected_counts("bernoulli", **parameters["bernoulli"])
    np.testing.assert_allclose(found, probability, rtol=1e-4)
    found = likelihoods.expected_log1p("bernoulli", **parameters["bernoulli"])
    np.testing.assert_allclose(found, probability * np.log(2), rtol=1e-4)
    found = likelihoods.expected_counts("gaussian", **parameters["gaussian"])
    np.testing.assert_array_equal(found, parameters["gaussian"]["mean"])
    with pytest.raises(ValueError, match="not defined for the gaussian"):
        likelihoods.expected_log1p("gaussian", **parameters["gaussian"])


def test_expected_counts_name_what_is_wrong(parameters):
    with pytest.raises(ValueError, match="need depth"):
        likelihoods.expected_counts("multinomial", **parameters["multinomial"])
    with pytest.raises(ValueError, match="unknown likelihood 'binomial': choose one of negative_binomial"):
        likelihoods.expected_counts("binomial", logits=np.zeros((1, 1)))


# --- choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n_features", "zero_share", "large_share", "maximum", "likelihood", "reason"),
    [
        ("rna", 1677, 0.92, 0.1, 255, "negative_binomial", "name"),
        ("atac", 7374, 0.99, 0.0, 8, "multinomial", "name"),
        ("Antibody Capture", 134, 0.1, 0.8, 18_439, "protein_mixture", "name"),
        ("hto", 4, 0.0, 0.9, 2000, "protein_mixture", "name"),
        ("Gene Expression", 20_000, 0.93, 0.2, 3000, "negative_binomial", "name"),
        ("Peaks", 90_000, 0.95, 0.3, 30, "multinomial", "name"),
        # Without a name that says anything, or with one that says two things.
        ("mod2", 134, 0.1, 0.8, 900, "protein_mixture", "few features"),
        ("mod2", 90_000, 0.97, 0.01, 9, "multinomial", "exceed 2"),
        ("", 20_000, 0.93, 0.2, 3000, "negative_binomial", "as of genes"),
        ("atac_gene_activity", 20_000, 0.8, 0.3, 90, "negative_binomial", "as of genes"),
        ("atac", 90_000, 0.97, 0.0, 1, "multinomial", "0 and 1"),
        ("mutations", 30, 0.5, 0.0, 1, "bernoulli", "0 and 1"),
    ],
)
def test_counts_get_the_likelihood_of_their_kind(
    name, n_features, zero_share, large_share, maximum, likelihood, reason
):
    choice = choose_likelihood(
        ModalitySummary(
            name=name,
            n_features=n_features,
            integer=True,
            minimum=0.0,
            maximum=maximum,
            zero_share=zero_share,
            large_share=large_share,
        )
    )
    assert choice.likelihood == likelihood
    assert choice.likelihood in LIKELIHOODS
    assert reason in choice.reason
    assert f"{n_features} features" in choice.reason


@pytest.mark.parametrize(
    ("integer", "minimum", "reason"), [(False, 0.0, "not whole numbers"), (True, -3.0, "the smallest is -3")]
)
def test_values_that_are_not_counts_are_gaussian_whatever_the_name(integer, minimum, reason):
    summary = ModalitySummary(
        n_features=2000, integer=integer, minimum=minimum, maximum=8.1, zero_share=0.9, large_share=0.1, name="rna"
    )
    choice = choose_likelihood(summary)
    assert choice.likelihood == "gaussian"
    assert reason in choice.reason
