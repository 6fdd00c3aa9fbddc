import numpy as np
import pytest

from bart_hk.tasks.bootstrap import intervals


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    found = intervals(lambda rows: {"mean": float(values[rows].mean())}, 400, samples=2000)
    low, high = found["mean"]
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.02)
    assert high == pytest.approx(values.mean() + error, abs=0.02)


def test_the_seed_decides_and_the_level_counts():
    values = np.arange(30.0)

    def mean(rows):
        return {"mean": float(values[rows].mean())}

    assert intervals(mean, 30, seed=3) == intervals(mean, 30, seed=3)
    assert intervals(mean, 30, seed=3) != intervals(mean, 30, seed=4)
    wide, narrow = (intervals(mean, 30, level=level)["mean"] for level in (0.99, 0.5))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert intervals(mean, 30, samples=0) == {}
