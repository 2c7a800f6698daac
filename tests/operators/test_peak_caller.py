from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffbio_sc.numerics.chains import two_state_host
from diffbio_sc.numerics.genome import background_host
from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig
from diffbio_sc.operators.epigenomics.peak_labels import REGION_KINDS

LENGTH = 400
TRUTH = ((60, 80), (200, 206), (300, 340))
OUTPUTS = {"peak_scores", "peak_calls", "peak_boundaries", "peak_logits", "peak_background"}


def simulate(seed=0, rows=2):
    """Counts with peaks of ten times the background."""
    rate = np.full(LENGTH, 0.5)
    for start, end in TRUTH:
        rate[start:end] = 6.0
    return np.random.default_rng(seed).poisson(rate, (rows, LENGTH)).astype(np.float32)


def make(**config):
    settings = {
        "num_filters": 4,
        "kernel_sizes": [3],
        "vae_hidden_dim": 6,
        "vae_latent_dim": 3,
        "window_size": 50,
        **config,
    }
    return DifferentiablePeakCaller(PeakCallerConfig(**settings), rngs=nnx.Rngs(0))


def disturb(caller, size=0.3):
    """Move every parameter, as training would."""
    state, rng = nnx.state(caller, nnx.Param), np.random.default_rng(1)
    # With numpy: JAX would compile each shape on its own.
    moved = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf) + size * rng.normal(size=leaf.shape).astype(np.float32)), state
    )
    nnx.update(caller, moved)
    return caller


def leaf_sizes(gradient):
    return {"/".join(map(str, path)): float(np.abs(leaf[...]).max()) for path, leaf in nnx.to_flat_state(gradient)}


@nnx.jit
def call(caller, data):
    """One compilation a shape, where calls outside of jit compile each operation."""
    return caller(data)


@nnx.jit
def gradient_of_all_outputs(caller, signal, weight):
    def objective(caller):
        found = caller({"signal": signal})
        edges = found["peak_boundaries"]["start"] - found["peak_boundaries"]["end"]
        return (weight * (found["peak_scores"] + found["peak_calls"] ** 2 + edges)).sum() + found["elbo_loss"].sum()

    return nnx.grad(objective)(caller)


def peak_loss(caller, signals, labels):
    """The loss that the specification prints."""
    data = {"signal": signals}
    result, _, _ = caller.apply(data, {}, None)
    peak_probs = result["peak_scores"]
    loss = -jnp.mean(labels * jnp.log(peak_probs + 1e-8) + (1 - labels) * jnp.log(1 - peak_probs + 1e-8))
    return loss


recipe_step = nnx.jit(nnx.value_and_grad(peak_loss))


@pytest.fixture(scope="module")
def signal():
    return simulate()


def test_e13_config_fields_and_defaults():
    """E13: the fields of the specification and of its code, lists taken and made hashable, bad values named."""
    config = PeakCallerConfig(kernel_sizes=[3, 5, 7])
    assert config == PeakCallerConfig()
    assert hash(config) == hash(PeakCallerConfig())
    assert (config.num_filters, config.kernel_sizes, config.threshold, config.temperature) == (32, (3, 5, 7), 0.5, 1.0)
    assert config.use_vae_denoising is False
    assert config.learnable_temperature is True
    assert (config.window_size, config.min_peak_width, config.vae_latent_dim, config.vae_hidden_dim) == (
        200,
        50,
        16,
        64,
    )
    for bad in ({"threshold": 1.0}, {"fold": 1.0}, {"mode": "sharp"}, {"kernel_sizes": []}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PeakCallerConfig(**bad)


def test_e14_quick_start_of_the_specification_runs():
    """E14: the Quick Start with only the package renamed, for (length,) and (batch, length)."""
    config = PeakCallerConfig(
        num_filters=32,
        kernel_sizes=[3, 5, 7],
        threshold=0.5,
        temperature=1.0,
    )
    rngs = nnx.Rngs(42)
    peak_caller = DifferentiablePeakCaller(config, rngs=rngs)
    for signal in (jnp.asarray(simulate()[0]), jnp.asarray(simulate())):
        data = {"signal": signal}
        result, state, metadata = peak_caller.apply(data, {}, None)
        peak_scores = result["peak_scores"]
        peak_calls = result["peak_calls"]
        boundaries = result["peak_boundaries"]
        assert peak_scores.shape == peak_calls.shape == signal.shape
        assert boundaries["start"].shape == boundaries["end"].shape == signal.shape
        assert (state, metadata) == ({}, None)
        assert set(result) == OUTPUTS | {"signal"}
        for values in (peak_scores, peak_calls, *boundaries.values()):
            assert ((values >= 0) & (values <= 1)).all()


def test_e14_untrained_scores_are_the_posterior_of_the_statistical_model(signal):
    """E14: the host engine, written apart, on Poisson log-odds over the local background."""
    found = call(make(num_filters=0), {"signal": signal})
    for row in range(len(signal)):
        background = background_host.local_background(signal[row], [400])
        log_odds = signal[row] * np.log(5.0) - 4.0 * background
        expected = two_state_host.chain_posterior(log_odds, 3.0, 3.0)
        np.testing.assert_allclose(found["peak_background"][row], background, rtol=1e-4)
        np.testing.assert_allclose(found["peak_scores"][row], expected.inside, atol=1e-4)
        np.testing.assert_allclose(found["peak_boundaries"]["start"][row], expected.start, atol=1e-4)
        np.testing.assert_allclose(found["peak_boundaries"]["end"][row], expected.end, atol=1e-4)


def test_e14_finds_the_planted_peaks(signal):
    caller = make(num_filters=0)
    found = call(caller, {"signal": signal})
    for row, segments in enumerate(caller.segments({"signal": signal})):
        assert len(segments) == len(TRUTH)
        np.testing.assert_allclose(segments, TRUTH, atol=3)
        expected = float(found["peak_boundaries"]["start"][row].sum())
        assert expected == pytest.approx(len(TRUTH), abs=0.7)


def test_e14_batched_unbatched_and_mapped_agree(signal):
    caller = make(num_filters=0)
    together = call(caller, {"signal": signal})
    mapped = jax.jit(jax.vmap(lambda row: caller({"signal": row})))(jnp.asarray(signal))
    alone = call(caller, {"signal": signal[1]})
    for name in OUTPUTS:
        np.testing.assert_allclose(*(jax.tree.leaves(part[name])[0] for part in (together, mapped)), atol=1e-4)
        np.testing.assert_allclose(jax.tree.leaves(together[name])[0][1], jax.tree.leaves(alone[name])[0], atol=1e-4)


def test_e15_correction_is_exactly_zero_until_trained(signal):
    """E15: with the network traced, where its state is not known, and without any, results are the same."""
    caller, plain = make(), make(num_filters=0)
    reads, background = jnp.asarray(signal), jnp.zeros_like(signal)
    for shift in nnx.jit(lambda correction: correction(reads, background))(caller.correction):
        np.testing.assert_allclose(shift, 0.0, atol=1e-6)
    np.testing.assert_array_equal(caller({"signal": signal})["peak_logits"], plain({"signal": signal})["peak_logits"])
    assert caller.correction.is_zero()
    for shift in caller.correction(reads, background):
        np.testing.assert_array_equal(shift, 0.0)
    disturb(caller)
    assert not caller.correction.is_zero()
    assert float(jnp.abs(caller.correction(reads, background)[0]).max()) > 0


def test_e15_correction_sees_two_kilobases():
    """E15: with kernels of 7 the reach is 81 positions to either side, 2 kb at 25 bp, and no further."""
    correction = disturb(make(kernel_sizes=[7])).correction
    background = jnp.zeros((1, LENGTH))
    objective = jax.jit(jax.grad(lambda reads: correction(reads, background)[0][0, 200]))
    gradient = objective(jnp.asarray(simulate(rows=1)))
    seen = np.flatnonzero(np.abs(np.asarray(gradient[0])) > 0)
    assert 200 - 81 <= seen.min() < 200 - 60
    assert 200 + 60 < seen.max() <= 200 + 81


@pytest.mark.parametrize("trained", [False, True])
def test_e15_e16_every_parameter_has_a_gradient(signal, trained):
    """E15, E16: filters, threshold, statistical settings and the denoiser; untrained and after a move."""
    caller = make(use_vae_denoising=True, threshold=0.4)
    if trained:
        disturb(caller, 0.05)
    weight = jnp.asarray(np.random.default_rng(0).normal(size=signal.shape))
    sizes = leaf_sizes(gradient_of_all_outputs(caller, signal, weight))
    assert len(sizes) == 6 + 8 + 12
    assert np.isfinite(list(sizes.values())).all()
    assert {name for name, size in sizes.items() if size == 0} == set()


def test_e16_denoiser_begins_as_a_gaussian_smoother(signal):
    """E16: scipy's Gaussian filter with a share of the window's mean, whose signal drives calling."""
    from scipy.ndimage import gaussian_filter1d

    caller = make(use_vae_denoising=True, positions_per_read=2.0, num_filters=0)
    found = call(caller, {"signal": signal})
    smooth = gaussian_filter1d(signal.astype(float), 2.0, axis=1, mode="constant", truncate=4.0)
    smooth = smooth / gaussian_filter1d(np.ones(LENGTH), 2.0, mode="constant", truncate=4.0)
    around = np.stack([background_host.window_mean(row, 50) for row in signal])
    np.testing.assert_allclose(found["denoised_signal"], 0.95 * smooth + 0.05 * around, rtol=1e-3, atol=1e-4)
    plain = make(positions_per_read=2.0, mode="narrow", num_filters=0)
    background = jnp.asarray(found["peak_background"])
    again = call(plain, {"signal": np.asarray(found["denoised_signal"]), "background": background})
    np.testing.assert_allclose(found["peak_logits"], again["peak_logits"], atol=1e-3)


def test_e16_denoiser_trains_by_its_evidence_bound(signal):
    """E16: the Poisson bound is returned, equals its formula, and training lowers it on other reads."""
    caller = make(use_vae_denoising=True, mode="narrow", num_filters=0)
    found = call(caller, {"signal": signal})
    rate = np.asarray(found["denoised_signal"], float)
    ratio = np.where(signal > 0, signal * np.log(np.maximum(signal, 1) / rate), 0.0)
    expected = (ratio - signal + rate).mean(1)
    divergence = np.asarray(nnx.jit(lambda denoiser, reads: denoiser(reads).divergence)(caller.denoiser, signal))
    np.testing.assert_allclose(found["elbo_loss"], expected + divergence, rtol=1e-4)
    data = {"signal": simulate(rows=8)}
    report = caller.fit(data, steps=30, learning_rate=0.01, network=True)
    assert np.isfinite(report.history["loss"]).all()
    assert report.history["loss"][-5:].mean() < report.history["loss"][:5].mean()


def test_e17_training_recipe_of_the_specification_is_finite_at_saturation():
    """E17: the printed loss through nnx.grad under jit, with scores at 0 and 1, for right and for wrong labels."""
    train_signals = np.zeros((2, LENGTH), np.float32)
    train_signals[:, 50:60] = 1e4
    train_signals[:, 120:140] = 2.0
    train_labels = np.zeros_like(train_signals)
    train_labels[:, 50:60] = 1
    peak_caller = make()
    for labels in (train_labels, 1 - train_labels):
        value, grads = recipe_step(peak_caller, train_signals, labels)
        assert np.isfinite(value)
        assert np.isfinite(list(leaf_sizes(grads).values())).all()
    scores = call(peak_caller, {"signal": train_signals})["peak_scores"]
    assert scores.max() > 1 - 1e-6
    assert scores.min() < 1e-6


def test_e22_soft_boundaries_of_the_specification_follow_from_the_switch_posteriors(signal):
    """E22: scores[i + 1] - scores[i] = start[i + 1] - end[i], so the printed sigmoids are functions of both."""
    found = call(make(num_filters=0), {"signal": signal[0]})
    scores, temperature = found["peak_scores"], 0.1
    start, end = found["peak_boundaries"]["start"], found["peak_boundaries"]["end"]
    start_probs = jax.nn.sigmoid((scores[1:] - scores[:-1]) / temperature)
    end_probs = jax.nn.sigmoid((scores[:-1] - scores[1:]) / temperature)
    np.testing.assert_allclose(start_probs, jax.nn.sigmoid((start[1:] - end[:-1]) / temperature), atol=1e-4)
    np.testing.assert_allclose(end_probs, 1 - start_probs, atol=1e-6)
    for (first, last), _ in zip(TRUTH, range(2), strict=False):
        assert abs(int(start_probs[first - 5 : first + 5].argmax()) + 1 - 5) <= 2
        assert abs(int(end_probs[last - 5 : last + 5].argmax()) + 1 - 5) <= 2


def test_soft_calls_become_the_best_path_as_the_temperature_goes_to_zero(signal):
    cold = call(make(temperature=1e-3, num_filters=0), {"signal": signal})
    for row in range(2):
        log_odds = signal[row] * np.log(5.0) - 4.0 * background_host.local_background(signal[row], [400])
        margin = two_state_host.chain_margins(log_odds, 3.0, 3.0)
        clear = np.abs(margin) > 1e-2
        for name in ("peak_scores", "peak_calls"):
            np.testing.assert_allclose(np.asarray(cold[name])[row][clear], margin[clear] > 0, atol=1e-3)
    high = call(make(threshold=0.99, num_filters=0), {"signal": signal})
    at_threshold = np.abs(np.asarray(high["peak_scores"]) - 0.99) < 0.003
    np.testing.assert_allclose(np.asarray(high["peak_calls"])[at_threshold], 0.5, atol=0.1)


def broad_track(seed=0):
    rng = np.random.default_rng(seed)
    rate = np.repeat([0.4, 2.4, 0.4, 2.4], [2000, 3000, 1500, 3500])
    return rng.poisson(rate).astype(np.float32)


def test_auto_mode_tells_domains_from_peaks():
    """Domains are called whole, at the background beneath them; peaks at the local one."""
    tracks = np.stack([broad_track(), np.tile(simulate(rows=1)[0], 25)])
    found = {mode: call(make(mode=mode, num_filters=0), {"signal": tracks}) for mode in ("auto", "narrow", "broad")}
    segments = make(num_filters=0).segments({"signal": tracks})[0]
    np.testing.assert_allclose(segments, [[2000, 5000], [6500, 10000]], atol=40)
    np.testing.assert_allclose(found["auto"]["peak_background"][0], 0.4, rtol=0.05)
    for row, mode in enumerate(("broad", "narrow")):
        np.testing.assert_allclose(found["auto"]["peak_logits"][row], found[mode]["peak_logits"][row], atol=1e-3)
    assert float(jnp.abs(found["broad"]["peak_logits"] - found["narrow"]["peak_logits"]).max()) > 1


def test_control_and_given_background(signal):
    """A peak that the control shows as well is none."""
    control = np.ones_like(signal)
    control[:, 60:80] = 30.0
    caller = make(background_windows=[], control_windows=[500], num_filters=0)
    starts = [segments[:, 0] for segments in caller.segments({"signal": signal, "control": control})]
    for found in starts:
        assert not ((found > 50) & (found < 90)).any()
        assert ((found > 295) & (found < 305)).any()
    background = np.full_like(signal, 0.5)
    found = call(caller, {"signal": signal, "background": background})
    np.testing.assert_allclose(found["peak_background"], 0.5, rtol=1e-5)


def test_gradient_by_the_signal_equals_finite_differences(signal):
    caller = make(mode="narrow", num_filters=0)
    weight = np.random.default_rng(3).normal(size=LENGTH)
    objective = jax.jit(jax.value_and_grad(lambda row: weight @ caller({"signal": row})["peak_scores"]))
    row = jnp.asarray(signal[0])
    gradient = objective(row)[1]
    for place in (61, 199, 310, 20):
        change = jnp.zeros(LENGTH).at[place].set(0.05)
        expected = (objective(row + change)[0] - objective(row - change)[0]) / 0.1
        assert float(gradient[place]) == pytest.approx(float(expected), rel=2e-2, abs=2e-3)


def test_float32_gradients_of_all_settings_equal_finite_differences(signal):
    """From counts to the loss, to a thousandth: differences of fourth order of the host engine, written apart."""
    caller = make(mode="narrow", num_filters=0)
    labels = np.zeros_like(signal)
    for start, end in TRUTH:
        labels[:, start:end] = 1
    names = ("log_excess", "log_enter", "log_leave", "log_background", "log_temperature", "threshold_logit")
    point = np.array([1.6, 1.2, 0.9, 0.15, 0.4, 0.3])
    for name, value in zip(names, point, strict=True):
        getattr(caller, name)[...] = jnp.float32(value)

    def on_host(values):
        excess, enter, leave, factor, temperature = np.exp(values[:5])
        total = 0.0
        for row, truth in zip(signal.astype(float), labels, strict=True):
            background = factor * background_host.local_background(row, [400])
            log_odds = row * np.log1p(excess) - excess * background
            chain = two_state_host.chain_posterior(log_odds, enter, leave, temperature)
            logits = chain.logits.astype(float) - values[5] / temperature
            total += (np.logaddexp(0.0, logits) - truth * logits).mean()
        return total / len(signal)

    data = {"signal": jnp.asarray(signal), "labels": jnp.asarray(labels)}
    value, gradient = nnx.jit(nnx.value_and_grad(lambda caller, data: caller.loss(data)))(caller, data)
    assert float(value) == pytest.approx(on_host(point), rel=1e-4)
    for index, name in enumerate(names):
        found = getattr(gradient, name)[...]
        assert found.dtype == jnp.float32
        step = 0.02 * np.eye(len(point))[index]
        near, far = (on_host(point + k * step) - on_host(point - k * step) for k in (1, 2))
        assert float(found) == pytest.approx((8 * near - far) / (12 * 0.02), rel=1e-3)


@pytest.mark.parametrize("length", [1, 6])
def test_short_tracks(length):
    """Shorter than every window and kernel; gradients where it is shortest."""
    caller = make(use_vae_denoising=True)

    def objective(caller):
        found = caller({"signal": jnp.ones(length)})
        return found["peak_scores"].sum(), found

    if length == 1:
        gradient, found = nnx.jit(nnx.grad(objective, has_aux=True))(caller)
        assert np.isfinite(list(leaf_sizes(gradient).values())).all()
    else:
        found = nnx.jit(objective)(caller)[1]
    assert found["peak_scores"].shape == (length,)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_a_track_without_counts_has_no_peaks():
    caller = make()
    empty = np.zeros((2, LENGTH), np.float32)
    assert float(call(caller, {"signal": empty})["peak_scores"].max()) < 0.1
    assert [len(segments) for segments in caller.segments({"signal": empty})] == [0, 0]
    _, gradient = recipe_step(caller, empty, empty)
    assert np.isfinite(list(leaf_sizes(gradient).values())).all()


def test_bad_input_is_refused_with_its_name(signal):
    caller = make()
    broken = signal.copy()
    broken[1, 7] = np.nan
    with pytest.raises(ValueError, match=r"data\['signal'\] must be finite: 1 of 800 .* \(1, 7\)"):
        caller.apply({"signal": broken})
    with pytest.raises(ValueError, match="not negative"):
        caller({"signal": signal - 1})
    for broad, message in (([0.5], r"shape \(2,\), one value"), ([0.5, 2.0], "between 0 and 1, found 0.5 to 2.0")):
        with pytest.raises(ValueError, match=message):
            caller({"signal": signal, "broad": broad})
    with pytest.raises(ValueError, match=r"data\['control'\] must have shape \(2, 400\)"):
        caller({"signal": signal, "control": signal[0]})
    with pytest.raises(KeyError, match="needs data\\['signal'\\]; found the keys \\['coverage'\\]"):
        caller.apply({"coverage": signal})
    with pytest.raises(ValueError, match="at least one position"):
        caller({"signal": np.zeros((2, 0))})
    regions = {"region_kind": [[0]], "region_start": [[390]], "region_end": [[401]]}
    with pytest.raises(ValueError, match="0 <= start < end <= 400"):
        caller.fit({"signal": signal[:1], **regions})


def regions(*rows):
    kind, start, end = (np.array([[region[part] for region in row] for row in rows]) for part in range(3))
    kind = np.vectorize(lambda name: REGION_KINDS.index(name) if name else -1)(kind)
    return {"region_kind": kind, "region_start": start.astype(int), "region_end": end.astype(int)}


def test_weak_label_loss_is_the_probability_of_the_labels_under_sampled_paths():
    """Paths drawn from the posterior chain on the host, one by one, and labels counted on them."""
    track = simulate(rows=1)[:, 40:100]
    caller = make(mode="narrow", num_filters=0, label_noise=0.0)
    log_odds = track[0] * np.log(5.0) - 4.0 * background_host.local_background(track[0], [400])
    chain = two_state_host.chain_posterior(log_odds, 3.0, 3.0)
    inside = chain.inside.astype(float)
    rng = np.random.default_rng(0)
    paths = np.zeros((20_000, 60), bool)
    paths[:, 0] = rng.random(20_000) < inside[0]
    for t in range(1, 60):
        rise = chain.start[t] / (1 - inside[t - 1])
        fall = chain.end[t - 1] / inside[t - 1]
        paths[:, t] = rng.random(20_000) < np.where(paths[:, t - 1], 1 - fall, rise)
    padded = np.pad(paths, ((0, 0), (1, 1)))
    starts, ends = padded[:, 1:-1] & ~padded[:, :-2], padded[:, 1:-1] & ~padded[:, 2:]
    cases = {
        ("noPeaks", 0, 12): ~paths[:, 0:12].any(1),
        ("peaks", 38, 60): paths[:, 38:60].any(1),
        ("peakStart", 15, 25): starts[:, 15:25].sum(1) == 1,
        ("peakEnd", 30, 60): ends[:, 30:60].sum(1) == 1,
    }

    def loss_of(labels):
        padded = [*labels, *[("", 0, 0)] * (5 - len(labels))]
        return float(objective({"signal": track, **regions(padded)}))

    objective = jax.jit(lambda data: caller.loss(data, longest_region=32))
    for region, happens in cases.items():
        loss = loss_of([region])
        share = happens.mean()
        assert loss == pytest.approx(-np.log(share), abs=5 * np.sqrt((1 - share) / share / 20_000) + 1e-3)
    together, single = loss_of(cases), [loss_of([region]) for region in cases]
    assert together == pytest.approx(np.mean(single), rel=1e-4)
    # Where a share of the labels is wrong, p becomes (1 - share) p + share (1 - p).
    caller = make(mode="narrow", num_filters=0, label_noise=0.1)
    objective = jax.jit(lambda data: caller.loss(data, longest_region=32))
    expected = -np.log(0.1 + 0.8 * np.exp(-np.array(single)))
    assert loss_of(cases) == pytest.approx(expected.mean(), rel=1e-4)


def test_fit_on_weak_labels_lowers_wrong_calls_on_other_draws(signal):
    """Settings that call noise; labels of the planted peaks on two tracks; calls counted on eight others."""
    labels = regions(
        *[
            [("noPeaks", 100, 190), ("peakStart", 50, 70), ("peakEnd", 70, 95), ("peaks", 190, 215), ("noPeaks", 0, 50)]
        ] * 2
    )  # fmt: skip
    caller = make(fold=8.0, narrow_penalty=0.4, mode="narrow")
    fresh = [simulate(seed) for seed in (9, 10, 11, 12)]

    def extra():
        return sum(len(found) - len(TRUTH) for draw in fresh for found in caller.segments({"signal": draw}))

    before = extra()
    report = caller.fit({"signal": signal, **labels}, steps=80)
    assert report.history["loss"][-1] < 0.2 * report.history["loss"][0]
    after = extra()
    assert before > 40
    assert after < 0.6 * before
    assert caller.correction.is_zero()


def test_fit_on_dense_labels_trains_the_network(signal):
    labels = np.zeros_like(signal)
    for start, end in TRUTH:
        labels[:, start:end] = 1
    labels[:, 380:] = np.nan
    caller = make(fold=2.0, mode="narrow")
    report = caller.fit({"signal": signal, "labels": labels}, steps=40, learning_rate=0.02)
    assert report.history["loss"][-1] < report.history["loss"][0]
    assert not caller.correction.is_zero()
    with pytest.raises(ValueError, match=r"data\['labels'\] must have shape"):
        caller.loss({"signal": signal, "labels": labels[0]})


def test_fit_without_labels_learns_from_split_counts():
    """Half of the reads predict the other half best at the fold they were drawn with, 12."""
    caller = make(fold=3.0, learnable_temperature=False, mode="narrow", num_filters=0)
    report = caller.fit({"signal": simulate(rows=6)}, steps=150, learning_rate=0.05)
    assert report.history["loss"][-10:].mean() < report.history["loss"][:10].mean()
    assert 1.0 + np.exp(float(caller.log_excess[...])) > 4.0


def test_saved_and_loaded(tmp_path, signal):
    caller = disturb(make(use_vae_denoising=True), 0.05)
    caller.save(tmp_path / "caller.npz")
    again = DifferentiablePeakCaller.load(tmp_path / "caller.npz")
    assert again.config == dataclasses.replace(caller.config)
    np.testing.assert_array_equal(*(call(each, {"signal": signal})["peak_logits"] for each in (again, caller)))


@pytest.mark.data
def test_expert_labels_with_defaults(data_folder):
    """64 labels of experts on a broad and a narrow mark; MACS3 with its defaults makes 28 errors."""
    import csv

    errors, number = 0, 0
    for name in ("H3K36me3_TDH_other_chunk1", "H3K4me3_chr11"):
        arrays = np.load(data_folder / "peaks" / f"{name}.npz")
        low, width = int(arrays["region"][0]), 25
        tracks = []
        for index in range(len(arrays["samples"])):
            run = {part: arrays[f"sample_{index}_{part}"] for part in ("start", "end", "count")}
            coverage = np.repeat(run["count"], run["end"] - run["start"]).astype(np.float32)
            tracks.append(coverage[: len(coverage) // width * width].reshape(-1, width).mean(1))
        caller = DifferentiablePeakCaller(
            PeakCallerConfig(bin_width=width, positions_per_read=100 / width), rngs=nnx.Rngs(0)
        )
        segments = caller.segments({"signal": np.stack(tracks)})
        with open(data_folder / "peaks" / f"{name}.labels.tsv", newline="") as file:
            for label in csv.DictReader(file, delimiter="\t"):
                row = list(arrays["samples"].astype(str)).index(label["sample"])
                first, last = int(label["start"]), int(label["end"])
                starts, ends = (low + width * segments[row]).T
                found = {
                    "noPeaks": int(((starts < last) & (ends > first)).sum()) == 0,
                    "peaks": int(((starts < last) & (ends > first)).sum()) > 0,
                    "peakStart": int(((starts >= first) & (starts < last)).sum()) == 1,
                    "peakEnd": int(((ends > first) & (ends <= last)).sum()) == 1,
                }
                errors += not found[label["annotation"]]
                number += 1
    assert number == 64
    assert errors <= 6
