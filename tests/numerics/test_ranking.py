"""Ranks against scipy, ranking measures against scikit-learn and against loops over pairs."""

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from diffbio_sc.numerics.ranking import auroc, average_precision, average_ranks, ranking_measures, within_rows


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 5)) < [0.2, 0.5, 0.5, 0.8, 0.4]).astype(float)
    scores = np.round(labels + rng.normal(size=labels.shape), 1)  # with ties
    return labels, scores


@pytest.mark.parametrize("number", [0, 1, 400])
def test_ranks_are_those_of_scipy(number):
    values = np.round(np.random.default_rng(0).normal(size=number), 1)  # with ties
    np.testing.assert_array_equal(average_ranks(values), rankdata(values))


def test_areas_are_those_of_scikit_learn(scored):
    labels, scores = scored
    for cell in range(5):
        assert auroc(labels[:, cell], scores[:, cell]) == pytest.approx(roc_auc_score(labels[:, cell], scores[:, cell]))
        peer = average_precision_score(labels[:, cell], scores[:, cell])
        assert average_precision(labels[:, cell], scores[:, cell]) == pytest.approx(peer)


def test_missing_labels_count_nothing(scored):
    labels, scores = scored[0][:, 0].copy(), scored[1][:, 0]
    labels[::3] = np.nan
    known = np.isfinite(labels)
    assert auroc(labels, scores) == auroc(labels[known], scores[known])
    assert average_precision(labels, scores) == average_precision(labels[known], scores[known])


def test_one_kind_of_label_is_nan():
    assert np.isnan(auroc(np.ones(4), np.arange(4)))
    assert np.isnan(average_precision(np.zeros(4), np.arange(4)))


def test_within_rows_counts_pairs(scored):
    labels, scores = scored[0][:40].copy(), scored[1][:40]
    labels[3, 1] = np.nan
    for row, value in enumerate(within_rows(labels, scores)):
        pairs = [
            1.0 * (scores[row, i] > scores[row, j]) + 0.5 * (scores[row, i] == scores[row, j])
            for i in range(5)
            for j in range(5)
            if labels[row, i] == 1 and labels[row, j] == 0
        ]
        assert value == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


def test_measures_over_varying_rows(scored):
    labels, scores = scored
    labels[:50], labels[50:90], labels[:, 4] = 1, 0, 0
    found = ranking_measures(labels, scores)
    varies = (labels.sum(1) > 0) & (labels.sum(1) < 5)
    inside, left = labels[varies], scores[varies] - scores[varies].mean(1, keepdims=True)
    assert found["n_var"] == varies.sum()
    cells = range(4)  # the last has no positive
    peer = np.mean([average_precision_score(inside[:, c], left[:, c]) for c in cells])
    assert found["diff_auprc"] == pytest.approx(peer)
    peer = np.mean([roc_auc_score(inside[:, c], scores[varies][:, c]) for c in cells])
    assert found["auroc_var"] == pytest.approx(peer)
    # What every cell type shares changes no comparison within a region.
    shifted = ranking_measures(labels, scores + np.round(np.random.default_rng(1).normal(size=(300, 1)), 1))
    assert shifted["within"] == pytest.approx(found["within"])
    assert shifted["diff_auprc"] == pytest.approx(found["diff_auprc"], abs=0.02)  # ties break by rounding
