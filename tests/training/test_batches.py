from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from diffbio_sc.training import batches
from diffbio_sc.training.devices import Placement

PLACEMENT = Placement(jax.sharding.SingleDeviceSharding(jax.devices()[0]), None)


def test_buckets_are_never_smaller_and_at_most_an_eighth_larger():
    sizes = np.arange(1, 5000)
    buckets = np.array([batches.bucket_size(int(size)) for size in sizes])
    assert (buckets >= sizes).all()
    assert (buckets <= sizes * 9 / 8).all()
    assert (np.diff(buckets) >= 0).all()
    # Eight buckets between powers of two.
    assert len(np.unique(buckets[(sizes > 1024) & (sizes <= 2048)])) == 8
    assert (buckets[:16] == sizes[:16]).all()


def test_an_epoch_order_is_a_permutation_that_sorts_the_documented_draws():
    key = jax.random.key(3)
    order = np.asarray(batches.epoch_order(key, 21, 24))
    draws = np.asarray(jax.random.uniform(key, (24,)))[:21]
    np.testing.assert_array_equal(order[:21], np.argsort(draws, kind="stable"))
    assert sorted(order[21:]) == [21, 22, 23]


def test_every_place_of_the_order_is_uniform():
    orders = jax.vmap(lambda key: batches.epoch_order(key, 5, 8))(jax.random.split(jax.random.key(0), 4000))[:, :5]
    frequencies = np.stack([np.bincount(orders[:, place], minlength=5) for place in range(5)]) / 4000
    # Five standard deviations of a binomial share of one fifth.
    np.testing.assert_allclose(frequencies, 0.2, atol=5 * np.sqrt(0.16 / 4000))


def test_a_split_is_disjoint_complete_and_repeatable():
    training, validation = batches.split_samples(jax.random.key(0), 40, 0.25)
    assert len(validation) == 10
    assert sorted([*training, *validation]) == list(range(40))
    again = batches.split_samples(jax.random.key(0), 40, 0.25)
    np.testing.assert_array_equal(validation, again[1])
    assert not np.array_equal(validation, batches.split_samples(jax.random.key(1), 40, 0.25)[1])
    assert len(batches.split_samples(jax.random.key(0), 4, 0.01)[1]) == 1
    with pytest.raises(ValueError, match=r"validation_fraction 0.9 of 2 samples leaves none"):
        batches.split_samples(jax.random.key(0), 2, 0.9)


def test_the_last_batch_goes_on_from_the_first_samples_with_weight_zero():
    samples = {"value": jnp.arange(100.0, 108.0)}
    index = jnp.array([6, 4, 2, 0, 1, 0, 0, 0])
    batch, count = batches.take_batch(
        samples, {"scale": jnp.float32(2)}, index, jnp.arange(8), 3, 4, 5, weighted=True, sharding=None
    )
    np.testing.assert_array_equal(batch["value"], [100, 101, 106, 104])
    np.testing.assert_array_equal(batch["sample_weight"], [1, 1, 0, 0])
    assert count == 2
    assert batch["scale"] == 2


def test_weights_of_the_data_are_kept_in_the_batch():
    samples = {"sample_weight": jnp.array([0.5, 2.0, 3.0])}
    batch, count = batches.take_batch(samples, {}, jnp.arange(3), jnp.arange(3), 2, 2, 3, weighted=True, sharding=None)
    np.testing.assert_array_equal(batch["sample_weight"], [3.0, 0.0])
    assert count == 1


@pytest.mark.parametrize("library", [np, jnp])
def test_placed_samples_keep_values_and_types_behind_which_zeros_fill_the_bucket(library):
    counts = library.arange(34, dtype="int32").reshape(17, 2)
    samples, shared = batches.place_samples(
        {"counts": counts, "profile": np.ones(5, np.float32)}, ["counts"], 17, placement=PLACEMENT
    )
    assert samples["counts"].shape == (18, 2)
    assert samples["counts"].dtype == jnp.int32
    np.testing.assert_array_equal(samples["counts"][:17], counts)
    np.testing.assert_array_equal(samples["counts"][17:], 0)
    assert shared["profile"].shape == (5,)


@pytest.mark.parametrize(
    ("data", "sample_keys", "error", "message"),
    [
        ({"a": np.ones(3), "b": np.ones(4)}, None, ValueError, "first axes of one length, found {'a': 3, 'b': 4}"),
        ({"a": np.ones(3), "b": np.float32(4)}, None, ValueError, "found {'a': 3, 'b': None}"),
        ({"a": np.ones((0, 2))}, None, ValueError, "data holds no samples"),
        ({"a": np.ones(3)}, ["b"], KeyError, r"sample_keys \['b'\] are not in data; found the keys \['a'\]"),
        ({"a": scipy.sparse.eye(3).tocsr()}, None, TypeError, "scipy sparse matrix"),
        ({"a": np.array(["x", "y"])}, None, TypeError, "must hold numbers, found dtype <U1"),
    ],
)
def test_data_that_cannot_be_batched_is_refused(data, sample_keys, error, message):
    with pytest.raises(error, match=message):
        batches.count_samples(data, sample_keys, name="data")


def test_a_fingerprint_sees_values_order_and_types():
    data = {"a": np.arange(4.0), "b": np.ones(2, np.int32)}
    same = {"b": jnp.ones(2, jnp.int32), "a": np.arange(4.0)}
    assert batches.fingerprint(data) == batches.fingerprint(same)
    assert batches.fingerprint(data) != batches.fingerprint({**data, "a": data["a"][::-1]})
    assert batches.fingerprint(data) != batches.fingerprint({**data, "b": data["b"].astype(np.int64)})


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_placed_samples_are_the_users_with_zeros_behind_and_no_longer_theirs(dtype):
    given = np.random.default_rng(0).integers(1, 9, (2051, 3)).astype(dtype)
    expected = given.copy()
    samples, _ = batches.place_samples({"x": given, "on_device": jnp.asarray(given)}, None, 2051, placement=PLACEMENT)
    given[:] = 0
    assert batches.bucket_size(2051) > 2051
    for placed in samples.values():
        assert placed.shape == (batches.bucket_size(2051), 3)
        assert placed.dtype == jnp.asarray(expected).dtype
        np.testing.assert_array_equal(placed[:2051], expected)
        assert not np.asarray(placed[2051:]).any()
