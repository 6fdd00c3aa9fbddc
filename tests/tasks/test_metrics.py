"""Expected values: scikit-learn 1.9.1 on the same arrays, and scipy."""

import numpy as np
import pytest
from scipy import stats

from bart_hk.tasks import metrics

# Classes -> accuracy_score, f1_score (binary or macro), matthews_corrcoef.
SCIKIT_LEARN = {
    2: (0.805, 0.7796610169491526, 0.6058004921933486),
    3: (0.735, 0.7328479601206874, 0.6014981830853906),
    6: (0.67, 0.6695742665317587, 0.602548676270948),
}


@pytest.mark.parametrize("classes", SCIKIT_LEARN)
def test_classification_metrics_are_scikit_learns(classes):
    i = np.arange(200)
    targets = (i * i + i // 7) % classes
    predicted = np.where(i % 5 < 3, targets, (targets + i // 3) % classes)
    ours = (
        metrics.accuracy(predicted, targets),
        metrics.f1(predicted, targets, classes),
        metrics.mcc(predicted, targets, classes),
    )
    np.testing.assert_allclose(ours, SCIKIT_LEARN[classes], rtol=1e-12)


def test_classes_that_do_not_occur():
    targets, predicted = np.array([0, 2, 2]), np.array([0, 2, 0])
    assert metrics.f1(predicted, targets, 5) == pytest.approx(2 / 3)  # scikit-learn's, too
    targets, constant = np.array([0, 1, 1]), np.zeros(3, int)
    assert metrics.mcc(constant, targets, 2) == metrics.f1(constant, targets, 2) == 0.0


def test_correlations_are_scipys_with_ties():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 6, 300) / 5
    predicted = (targets + rng.normal(size=300)).round(1).astype(np.float32)
    assert metrics.pearson(predicted, targets) == pytest.approx(
        stats.pearsonr(predicted.astype(float), targets).statistic, abs=1e-12
    )
    assert metrics.spearman(predicted, targets) == pytest.approx(
        stats.spearmanr(predicted, targets).statistic, abs=1e-12
    )
    assert metrics.pearson(np.ones(4), np.arange(4)) == 0.0
