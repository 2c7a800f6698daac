from __future__ import annotations

import numpy as np
import pytest

import diffbio_sc as dbio


def by_loops(first, second):
    """The definition, cell by cell."""
    shares = []
    for a, b in ((first, second), (second, first)):
        for i in range(len(a)):
            own = np.sqrt(((a[i] - b[i]) ** 2).sum())
            others = [np.sqrt(((a[i] - b[j]) ** 2).sum()) for j in range(len(a)) if j != i]
            shares.append(np.mean([other < own for other in others]))
    return np.mean(shares)


def test_equals_the_definition():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(60, 4))
    second = first + rng.normal(size=(60, 4))
    assert dbio.metrics.foscttm(first, second) == pytest.approx(by_loops(first, second), abs=1e-12)


@pytest.mark.parametrize("block", [1, 7, 59, 60, 61])
def test_blocks_do_not_matter(monkeypatch, block):
    import importlib

    module = importlib.import_module("diffbio_sc.metrics._foscttm")
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 60, 3))
    expected = by_loops(first, second)
    monkeypatch.setattr(module, "_BLOCK", block)
    assert module.foscttm(first, second) == pytest.approx(expected, abs=1e-12)


def test_ends_of_the_scale():
    cells = np.random.default_rng(2).normal(size=(50, 5))
    assert dbio.metrics.foscttm(cells, cells) == 0.0
    # On a line, each cell matched to its mirror image: all pairs of {-1, 1} are nearer than the match.
    assert dbio.metrics.foscttm(np.array([[-1.0], [1.0]]), np.array([[1.0], [-1.0]])) == 1.0
    unrelated = np.random.default_rng(3).normal(size=(2, 1500, 5))
    assert dbio.metrics.foscttm(*unrelated) == pytest.approx(0.5, abs=0.02)


def test_ties_are_not_nearer():
    assert dbio.metrics.foscttm(np.zeros((10, 3)), np.zeros((10, 3))) == 0.0


def test_bad_input():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 1\)"):
        dbio.metrics.foscttm(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="two cells or more, found 1"):
        dbio.metrics.foscttm(np.zeros((1, 2)), np.zeros((1, 2)))
    broken = np.zeros((4, 2))
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"second must be finite, found 1 bad rows, first: \[2\]"):
        dbio.metrics.foscttm(np.zeros((4, 2)), broken)
