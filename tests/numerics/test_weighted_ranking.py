from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from diffbio_sc.numerics.weighted_ranking import weighted_auprc, weighted_auroc


@pytest.mark.parametrize("ties", [False, True])
def test_both_equal_scikit_learn_with_weights(ties):
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 300).astype(np.float32)
    score = rng.normal(size=300) + truth
    if ties:
        score = np.round(score)
    groups = rng.integers(0, 40, 300)
    weights = rng.integers(0, 4, (6, 40)).astype(float)
    for ours, theirs in ((weighted_auroc, roc_auc_score), (weighted_auprc, average_precision_score)):
        expected = [theirs(truth, score, sample_weight=draw[groups]) for draw in weights]
        np.testing.assert_allclose(ours(truth, score, weights, groups), expected, atol=1e-12)


def test_a_class_without_weight_is_nan():
    truth, groups = np.array([0.0, 0.0, 1.0]), np.array([0, 0, 1])
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    score = np.array([0.1, 0.5, 0.3])
    np.testing.assert_equal(weighted_auroc(truth, score, weights, groups), [np.nan, np.nan, 0.5])
    np.testing.assert_equal(weighted_auprc(truth, score, weights, groups), [np.nan, 1.0, 0.5])
