from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program

from diffbio_sc.numerics.genome import background, background_host

window_mean, local_background, breadth = map(
    one_program, (background.window_mean, background.local_background, background.breadth)
)


def brute_mean(values, width):
    before = width // 2
    after = width - 1 - before
    return np.array([values[max(t - before, 0) : t + after + 1].mean() for t in range(len(values))])


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(0).poisson(2.0, 301).astype(float)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 40, 128, 300, 301, 1000])
def test_window_means_are_those_of_a_loop(counts, width):
    expected = brute_mean(counts, width)
    np.testing.assert_allclose(background_host.window_mean(counts, width), expected, rtol=1e-12)
    np.testing.assert_allclose(window_mean(jnp.float32(counts), width), expected, rtol=1e-6)


def test_windows_lose_no_count_beside_a_pile_of_ten_million():
    """Differences of running totals in float32 would: the sum before the window is far above its counts."""
    counts = np.ones(5000, np.float32)
    counts[100] = 1e7
    for found in (window_mean(jnp.asarray(counts), 50), background_host.window_mean(counts, 50)):
        np.testing.assert_allclose(np.asarray(found)[1000:], 1.0, rtol=1e-6)


def test_background_is_the_largest_of_level_and_windows(counts):
    expected = np.maximum.reduce([np.full(301, counts.mean()), brute_mean(counts, 5), brute_mean(counts, 50)])
    np.testing.assert_allclose(background_host.local_background(counts, [5, 50]), expected, rtol=1e-12)
    np.testing.assert_allclose(local_background(jnp.float32(counts), [5, 50]), expected, rtol=1e-5)


def test_control_is_scaled_to_the_depth_of_the_signal(counts):
    control = np.random.default_rng(1).poisson(10.0, 301).astype(float)
    scale = counts.sum() / control.sum()
    expected = np.maximum(counts.mean(), scale * brute_mean(control, 20))
    np.testing.assert_allclose(background_host.local_background(counts, [20], control=control), expected, rtol=1e-12)
    found = local_background(jnp.float32(counts), [20], control=jnp.float32(control))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    given = np.maximum(0.1, 0.5 * brute_mean(control, 20))
    options = {"control_scale": 0.5, "level": 0.1}
    np.testing.assert_allclose(background_host.local_background(counts, [20], control=control, **options), given)
    found = local_background(jnp.float32(counts), [20], control=jnp.float32(control), **options)
    np.testing.assert_allclose(found, given, rtol=1e-5)


@pytest.mark.parametrize("depth", [0.02, 0.2, 0.9, 3.0])
def test_noise_of_a_shallow_control_is_part_of_the_background(depth):
    """Both engines, and the formula written out; a control that is deep enough changes nothing."""
    rng = np.random.default_rng(4)
    rate = 4 * np.exp(0.8 * np.sin(np.arange(600) / 40.0))
    signal, control = rng.poisson(rate).astype(float), rng.poisson(depth * rate).astype(float)
    scale = signal.sum() / control.sum()
    plain = background_host.local_background(signal, [20, 100], control=control)
    expected = plain
    if scale > 1:
        share = 1 - 1 / scale
        for width in (50, 100):
            seen = width * brute_mean(control, width)
            limit = seen + share * 2.0 + 2.0 * np.sqrt(share * (seen + share))
            expected = np.maximum(expected, np.minimum(scale * limit / width, brute_mean(signal, width)))
        assert (expected > 1.02 * plain).any() or depth > 0.5
    found = background_host.local_background(signal, [20, 100], control=control, own_width=50)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    twin = local_background(jnp.float32(signal), [20, 100], control=jnp.float32(control), own_width=50)
    np.testing.assert_allclose(twin, expected, rtol=1e-5)


def test_empty_control_and_empty_signal_leave_the_level(counts):
    zeros = np.zeros(301)
    np.testing.assert_allclose(background_host.local_background(counts, [20], control=zeros), counts.mean())
    found = local_background(jnp.float32(counts), [20], control=jnp.zeros(301))
    np.testing.assert_allclose(found, counts.mean(), rtol=1e-6)
    np.testing.assert_array_equal(background_host.local_background(zeros, [20]), 1e-6)
    np.testing.assert_allclose(local_background(jnp.zeros(301), [20]), 1e-6)


def test_control_of_another_length_is_refused(counts):
    with pytest.raises(ValueError, match="control must have shape"):
        background_host.local_background(counts, [20], control=counts[:-1])


def simulate(lengths, seed=0, low=0.5, fold=6.0, gap=0):
    """Alternating background and domains of the given lengths."""
    rng = np.random.default_rng(seed)
    rate = np.concatenate([np.full(size, low * (fold if index % 2 else 1)) for index, size in enumerate(lengths)])
    counts = rng.poisson(rate).astype(float)
    if gap:
        counts[:gap] = 0
    return counts


@pytest.mark.parametrize("gap", [0, 8000])
def test_robust_level_finds_the_background_under_domains_that_fill_most(gap):
    counts = simulate([8000 + gap, 16000, 4000, 20000], gap=gap)
    assert counts.mean() > 3 * 0.5
    level = background_host.robust_level([counts], 80)
    assert level == pytest.approx(0.5, rel=0.03)
    assert float(background.robust_level(jnp.float32(counts), 80)) == pytest.approx(level, rel=1e-3)
    split = np.split(counts, [8000 + gap, 24000 + gap])
    assert background_host.robust_level(split, 80) == pytest.approx(level, rel=1e-6)


def test_robust_level_of_tiny_and_empty_tracks():
    assert background_host.robust_level([np.array([1.0, 2.0])], 80) == 1.5
    assert float(background.robust_level(jnp.array([1.0, 2.0]), 80)) == 1.5
    assert background_host.robust_level([np.zeros(1000)], 80) == pytest.approx(0.0, abs=1e-6)
    assert float(background.robust_level(jnp.zeros(1000), 80)) == pytest.approx(0.0, abs=1e-6)
    assert background_host.robust_level([], 80) == 0.0


def test_robust_level_has_a_gradient():
    counts = jnp.float32(simulate([4000, 4000]))
    gradient = jax.grad(lambda x: background.robust_level(x, 80))(counts)
    assert np.isfinite(gradient).all()
    # Scaling the background's counts scales the level.
    assert float(gradient @ counts) == pytest.approx(float(background.robust_level(counts, 80)), rel=1e-3)


def test_breadth_tells_domains_from_peaks_and_does_not_depend_on_depth():
    broad = simulate([2000, 3000, 1500, 2500])
    narrow = simulate([400, 60] * 20)
    for counts, low, high in ((broad, 0.6, 1.1), (narrow, -0.4, 0.2)):
        value = background_host.breadth([counts], 25)
        assert low < value < high
        assert float(breadth(jnp.float32(counts), 25)) == pytest.approx(value, abs=1e-3)
        thinned = np.random.default_rng(2).binomial(counts.astype(int), 0.5).astype(float)
        assert background_host.breadth([thinned], 25) == pytest.approx(value, abs=0.1)
    contrast = background_host.level_contrast([broad], 80)
    assert contrast == pytest.approx(6.0, rel=0.1)  # the fold of the domains
    assert background_host.broad_weight(background_host.breadth([broad], 25), contrast) > 0.99


def test_both_engines_weigh_a_mark_alike():
    """Over random breadths and contrasts on both sides of their borders, which stand once and are these."""
    rng = np.random.default_rng(0)
    for value, contrast in zip(rng.uniform(0, 0.8, 200), rng.uniform(1, 5, 200), strict=True):
        host = background_host.broad_weight(value, contrast)
        assert float(background.broad_weight(jnp.float32(value), jnp.float32(contrast))) == pytest.approx(
            host, abs=1e-4
        )
    for engine in (background_host, background):
        # An input, smooth unevenness, a sharp mark; the weakest H3K36me3 track and threefold domains.
        for value, contrast, broad in ((0.44, 1.3, 0), (0.59, 2.3, 0), (0.21, 5, 0), (0.44, 2.7, 1), (0.75, 2.9, 1)):
            assert abs(float(engine.broad_weight(value, contrast)) - broad) < 0.05


@pytest.mark.parametrize("kind", ["domains", "peaks", "slow", "flat", "zero", "short"])
def test_both_engines_measure_breadth_and_contrast_alike(kind):
    rng = np.random.default_rng(1)
    counts = {
        "domains": lambda: simulate([1500, 2500, 3000], seed=2),
        "peaks": lambda: simulate([300, 40] * 18, seed=3),
        "slow": lambda: rng.poisson(4 + 3 * np.sin(np.arange(9000) / 2500.0)).astype(float),
        "flat": lambda: rng.poisson(2.0, 6000).astype(float),
        "zero": lambda: np.zeros(6000),
        "short": lambda: np.ones(100),
    }[kind]()
    host = background_host.breadth([counts], 25), background_host.level_contrast([counts], 80)
    assert float(breadth(jnp.float32(counts), 25)) == pytest.approx(host[0], abs=2e-3)
    assert float(background.level_contrast(jnp.float32(counts), 80)) == pytest.approx(host[1], rel=1e-3)


def test_slow_unevenness_is_no_breadth():
    """Copy number in steps of megabases: reaches far beyond 5 kb, and is taken away with the mean over 100 kb."""
    rng = np.random.default_rng(5)
    level = np.repeat([2.0, 3.0, 2.0, 4.0], 20_000)
    level[rng.choice(len(level), 400)] *= 20.0
    counts = rng.poisson(np.convolve(level, np.ones(60) / 60, mode="same")).astype(float)
    centred = counts - counts.mean()
    old = np.mean(centred[200:] * centred[:-200]) / np.mean(centred[20:] * centred[:-20])
    assert old > 0.6
    assert background_host.breadth([counts], 25) < background_host.BREADTH_BETWEEN


def test_breadth_is_a_ratio_of_covariances():
    counts = np.random.default_rng(3).poisson(3 + 2 * np.sin(np.arange(3000) / 90.0)).astype(float)
    centred = counts - brute_mean(counts, 4000)
    expected = np.mean(centred[200:] * centred[:-200]) / np.mean(centred[20:] * centred[:-20])
    assert background_host.breadth([counts], 25) == pytest.approx(expected, rel=1e-9)
    for track in (np.ones(3000), np.zeros(3000), counts[:100]):
        assert background_host.breadth([track], 25) == 0.0
        assert float(breadth(jnp.float32(track), 25)) == 0.0


def test_two_levels_that_lie_close_are_one_uneven_background():
    """Rates of 2 and 4 a window are both background, of 2 and 8 the lower one is; in both engines."""
    rng = np.random.default_rng(4)
    for fold, expected in ((2.0, 4.0), (4.0, 2.0)):
        rate = np.where(np.arange(4000) // 500 % 2 == 1, fold, 1.0) * 2.0
        counts = rng.poisson(10 * rate).astype(float)
        host = background_host.robust_level([counts], 1)
        assert host == pytest.approx(10 * expected, rel=0.02)
        assert float(background.robust_level(jnp.float32(counts), 1)) == pytest.approx(host, rel=1e-3)


@pytest.mark.parametrize(("low", "left_out"), [(6.0, True), (3.0, False)])
def test_empty_windows_are_gaps_where_a_typical_one_holds_more_than_ten(low, left_out):
    """Half of the windows four times as rich as the others, after as many without a count: a mean of 15 or of 7.5."""
    rng = np.random.default_rng(6)
    counts = rng.poisson(np.repeat([low, 4 * low], 2000)).astype(float)
    level = background_host.robust_level([np.concatenate([np.zeros(4000), counts])], 1)
    if left_out:
        assert level == pytest.approx(background_host.robust_level([counts], 1), rel=0.01)
    else:
        assert level < 0.6 * low
