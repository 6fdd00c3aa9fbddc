"""How sure a metric is: intervals from rows drawn again with replacement.

Source: Efron 1979; the percentile interval, as of Koehn 2004 for BLEU.
"""

from collections.abc import Callable

import numpy as np


def intervals(
    metrics: Callable[[np.ndarray], dict[str, float]],
    rows: int,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 1,
) -> dict[str, tuple[float, float]]:
    """The lower and the upper end for each metric.

    Args:
        metrics: of row numbers, int64 [rows], some of which come up several times.
        rows: how many there are.
        samples: how often they are drawn.
        level: the share of the draws' values between both ends.
        seed: the same one gives the same intervals.

    Returns:
        {} where nothing is drawn.
    """
    rng = np.random.default_rng([seed, rows])
    drawn = [metrics(rng.integers(0, rows, rows)) for _ in range(samples)]
    if not drawn:
        return {}
    ends = [50 * (1 - level), 50 * (1 + level)]
    found = {}
    for name in drawn[0]:
        low, high = np.percentile([values[name] for values in drawn], ends)
        found[name] = float(low), float(high)
    return found
