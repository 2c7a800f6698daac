"""The one reader of rng arguments."""

from __future__ import annotations

import numpy as np
import pytest

from diffbio_sc._random import as_generator


def test_a_seed_gives_the_stream_of_numpy():
    for seed in (0, 7, np.int64(7), np.uint8(7)):
        assert as_generator(seed).integers(2**31) == np.random.default_rng(int(seed)).integers(2**31)


def test_a_generator_is_drawn_from():
    generator = np.random.default_rng(3)
    assert as_generator(generator) is generator


@pytest.mark.parametrize("kind", [np.random.SeedSequence, np.random.PCG64])
def test_what_numpy_takes_for_a_seed_gives_the_stream_of_numpy(kind):
    assert as_generator(kind(5)).integers(2**31) == np.random.default_rng(5).integers(2**31)


def test_a_random_state_is_drawn_from():
    state, same = np.random.RandomState(3), np.random.RandomState(3)
    first = as_generator(state).integers(2**31)
    assert as_generator(same).integers(2**31) == first
    assert as_generator(state).integers(2**31) != first


def test_none_takes_fresh_entropy():
    assert as_generator(None).integers(2**62) != as_generator(None).integers(2**62)


@pytest.mark.parametrize("wrong", [1.5, "0", True, [1, 2], np.array([1])])
def test_other_types_are_refused(wrong):
    with pytest.raises(TypeError, match="seed must be a seed .*found"):
        as_generator(wrong, "seed")


def test_negative_seeds_are_refused():
    with pytest.raises(ValueError, match="rng must be a whole number of at least 0, found -1"):
        as_generator(-1)
