"""Rows of different lengths that lie end to end in one array: where each begins and ends.

Shapes: B rows, their lengths int64 [B], N their sum.
"""

import numpy as np


def ends(lengths: np.ndarray) -> np.ndarray:
    """The position after each row's last element: int64 [B]."""
    return np.cumsum(lengths)


def starts(lengths: np.ndarray) -> np.ndarray:
    """The position of each row's first element: int64 [B]."""
    return np.cumsum(lengths) - lengths


def positions_within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... in every row: int64 [N]."""
    return np.arange(int(lengths.sum())) - np.repeat(starts(lengths), lengths)


def first_of_each(lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The positions of every row's first `counts` (int64 [B]) elements: int64 [sum(counts)]."""
    return np.repeat(starts(lengths), counts) + positions_within(counts)
