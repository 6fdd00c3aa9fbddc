"""The distances between a student and its teacher, against NumPy."""

import numpy as np
import pytest

from bart_hk.tasks.teaching import hidden_loss, soft_binary_cross_entropy, soft_cross_entropy

RNG = np.random.default_rng(0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_soft_targets(temperature):
    """torch's KLDivLoss(reduction="sum") of softened distributions, times the square."""
    student, teacher = RNG.normal(size=(2, 3, 4, 7)) * 3
    weights = RNG.random((3, 4)) * (RNG.random((3, 4)) > 0.3)
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = ((p * np.log(p / q)).sum(-1) * weights).sum() * temperature**2
    found = soft_cross_entropy(student, teacher, weights, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(soft_cross_entropy(teacher, teacher, weights, temperature)) == pytest.approx(0)


def test_soft_targets_of_classes_that_do_not_exclude_each_other():
    student, teacher = RNG.normal(size=(2, 5, 3))
    weights = np.array([1, 1, 0, 1, 1.0])
    p, q = (1 / (1 + np.exp(-x / 2)) for x in (teacher, student))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    expected = (each.mean(1) * weights).sum() * 4
    found = soft_binary_cross_entropy(student, teacher, weights, 2.0)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_hidden_states(normalize):
    """Each layer's output with that of its teacher's, over real tokens alone."""
    student, teacher = RNG.normal(size=(3, 2, 5, 6)) * 3, RNG.normal(size=(7, 2, 5, 6)) + 1
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    expected = 0.0
    for number, layer in enumerate((2, 5)):
        pair = [student[number + 1], teacher[layer + 1]]
        if normalize:
            centred = [x - x.mean(-1, keepdims=True) for x in pair]
            pair = [x / np.sqrt(x.var(-1, keepdims=True) + 1e-5) for x in centred]
        expected += np.mean((pair[0] - pair[1])[mask] ** 2)
    found = hidden_loss(list(student), list(teacher), (2, 5), mask, normalize)
    assert float(found) == pytest.approx(expected, rel=1e-5)
