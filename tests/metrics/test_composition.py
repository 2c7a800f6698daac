from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr

import diffbio_sc as dbio


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(5, 0.3), 40)
    truth[truth < 0.1] = 0
    truth[:, 4] = 0
    truth /= truth.sum(1, keepdims=True)
    return rng.dirichlet(np.ones(5), 40), truth


def test_scores_equal_independent_formulas(pair):
    estimate, truth = pair
    scores = dbio.metrics.composition(estimate, truth)
    assert scores["rmse"] == pytest.approx(
        np.mean([np.sqrt(np.mean((e - t) ** 2)) for e, t in zip(*pair, strict=True)])
    )
    distance = [jensenshannon(e, t, base=2) ** 2 for e, t in zip(*pair, strict=True)]
    assert scores["jsd"] == pytest.approx(np.mean(distance))
    correlation = [pearsonr(estimate[:, k], truth[:, k]).statistic for k in range(4)]
    assert scores["pearson"] == pytest.approx(np.mean(correlation))
    assert scores["absent_mass"] == pytest.approx(estimate[:, 4].mean())


def test_average_precision_by_hand():
    # Ranked: hit, miss, hit, miss -> (1/1 + 2/3) / 2; ties are one step.
    estimate = np.array([[0.4, 0.3], [0.2, 0.1]])
    truth = np.array([[1.0, 0.0], [1.0, 0.0]])
    normal = estimate / estimate.sum(1, keepdims=True)
    order = np.argsort(-normal.ravel(), kind="stable")
    hits = (truth > 0).ravel()[order]
    expected = sum(hits[: i + 1].mean() for i in np.flatnonzero(hits)) / hits.sum()
    assert dbio.metrics.composition(estimate, truth)["aupr"] == pytest.approx(expected)
    assert dbio.metrics.composition(np.ones((2, 2)), truth)["aupr"] == pytest.approx(0.5)


def test_tables_are_aligned_by_name(pair):
    estimate, truth = (pd.DataFrame(values, columns=list("abcde")) for values in pair)
    shuffled = estimate.sample(frac=1, random_state=0)[list("ecabd")]
    assert dbio.metrics.composition(shuffled, truth) == dbio.metrics.composition(estimate, truth)
    with pytest.raises(ValueError, match="same column names; only in one: .'e', 'f'"):
        dbio.metrics.composition(estimate.rename(columns={"e": "f"}), truth)


def test_missing_rows_count_as_uniform(pair):
    estimate, truth = pair
    estimate[3] = np.nan
    uniform = estimate.copy()
    uniform[3] = 0.2
    scores = dbio.metrics.composition(estimate, truth)
    assert scores.pop("failed_spots") == 1
    expected = dbio.metrics.composition(uniform, truth)
    expected.pop("failed_spots")
    assert scores == expected


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 2\)"):
        dbio.metrics.composition(np.ones((2, 3)), np.ones((2, 2)))
