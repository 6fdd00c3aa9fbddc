"""The best along the vocabulary's axis against `jax.lax.top_k`."""

import jax
import numpy as np
import pytest

from bart_hk.generation.ranking import best_of_first_axis


@pytest.mark.parametrize(("rows", "count"), [(6, 2), (6, 6), (300, 2), (1001, 8), (1024, 5)])
def test_the_best_of_the_first_axis_are_those_of_top_k_ties_included(rows, count):
    rng = np.random.default_rng(rows)
    logits = rng.integers(0, 40, (rows, 2, 3)).astype(np.float32)
    logits[:, 0, 0], logits[rows // 2 :, 1, 1] = 7, -np.inf
    best, indices = jax.jit(best_of_first_axis, static_argnums=1)(logits, count)
    expected, expected_indices = jax.lax.top_k(np.moveaxis(logits, 0, -1), count)
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_array_equal(indices, expected_indices)
