"""Metrics over all predictions of a file, equal to scikit-learn's and scipy's.

Where a metric is undefined (a constant prediction has no correlation) it is 0.0, as in
scikit-learn's `matthews_corrcoef` and `f1_score`, so that a run can still be ranked by it.
"""

import numpy as np


def accuracy(predicted: np.ndarray, targets: np.ndarray) -> float:
    """The share of equal entries."""
    return float(np.mean(predicted == targets))


def f1(predicted: np.ndarray, targets: np.ndarray, classes: int) -> float:
    """F1 of class 1 where there are two classes, else the mean of all classes' F1 (macro)."""
    confusion = _confusion(predicted, targets, classes)
    hits = np.diag(confusion)
    sizes = confusion.sum(0) + confusion.sum(1)
    scores = np.divide(2.0 * hits, sizes, out=np.zeros(classes), where=sizes > 0)
    if classes == 2:
        return float(scores[1])
    return float(scores[sizes > 0].mean())  # as scikit-learn, over the classes that occur


def mcc(predicted: np.ndarray, targets: np.ndarray, classes: int) -> float:
    """Matthews' correlation coefficient, for any number of classes (Gorodkin 2004)."""
    confusion = _confusion(predicted, targets, classes)
    n = confusion.sum()
    rows, columns = confusion.sum(1), confusion.sum(0)
    covariance = n * np.trace(confusion) - rows @ columns
    spread = (n * n - rows @ rows) * (n * n - columns @ columns)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(predicted: np.ndarray, targets: np.ndarray) -> float:
    """The linear correlation of two [N] arrays, in float64."""
    x, y = (np.asarray(a, np.float64) - np.mean(a, dtype=np.float64) for a in (predicted, targets))
    spread = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / spread, -1, 1)) if spread > 0 else 0.0


def spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """The correlation of the ranks; ties share their mean rank."""
    return pearson(_ranks(predicted), _ranks(targets))


def of_classes(predicted: np.ndarray, targets: np.ndarray, classes: int) -> dict[str, float]:
    """accuracy, f1, acc_and_f1 (their mean) and mcc of int [N] arrays, in percent."""
    found = {
        "accuracy": accuracy(predicted, targets),
        "f1": f1(predicted, targets, classes),
        "mcc": mcc(predicted, targets, classes),
    }
    found["acc_and_f1"] = (found["accuracy"] + found["f1"]) / 2
    return {name: 100 * value for name, value in found.items()}


def of_values(predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """pearson and spearman of [N] arrays, in percent."""
    return {
        "pearson": 100 * pearson(predicted, targets),
        "spearman": 100 * spearman(predicted, targets),
    }


def of_label_sets(predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Of bool [N, C] arrays, in percent: accuracy (rows whose labels are all right), and F1 over
    all decisions (micro_f1) and as the mean over the classes (macro_f1; without any label, 0)."""
    hits = (predicted & targets).sum(0).astype(np.float64)
    sizes = predicted.sum(0) + targets.sum(0)
    each = np.divide(2 * hits, sizes, out=np.zeros(len(hits)), where=sizes > 0)
    return {
        "accuracy": 100 * float(np.mean((predicted == targets).all(1))),
        "micro_f1": 100 * float(2 * hits.sum() / max(sizes.sum(), 1)),
        "macro_f1": 100 * float(each.mean()),
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _confusion(predicted: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    cells = np.bincount(targets * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.float64)
