"""Draws that the real fairseq made, for our noise to use again."""

from typing import Any

import numpy as np

from bart_hk.data.noising import NoiseConfig, Noiser
from tools.goldens._noise_cases import FULL_STOP, MASK


class RecordedDraws:
    """`records[i]` lists [kind, size, values] of row i, in fairseq's order; all must be used."""

    def __init__(self, records: list[list[list[Any]]]) -> None:
        self._left = [list(record) for record in records]

    def _next(self, row: int, kind: str, size: int) -> list[Any]:
        found, drawn, values = self._left[row].pop(0)
        assert (found, drawn) == (kind, size), (row, found, drawn, kind, size)
        return values

    def permutations(self, sizes: np.ndarray, kept: np.ndarray) -> np.ndarray:
        found = []
        for row, (size, some) in enumerate(zip(sizes.tolist(), kept.tolist(), strict=True)):
            if size:
                found += self._next(row, "permutations", size)[:some]
        return np.array(found, np.int64)

    def _each(self, kind: str, counts: np.ndarray) -> list[Any]:
        drawing = [(row, count) for row, count in enumerate(counts.tolist()) if count]
        return [value for row, count in drawing for value in self._next(row, kind, count)]

    def uniforms(self, counts: np.ndarray) -> np.ndarray:
        return np.array(self._each("uniforms", counts), np.float64)

    def spans(self, counts: np.ndarray, cumulative: np.ndarray) -> np.ndarray:
        return np.array(self._each("spans", counts), np.int64)

    def tokens(self, counts: np.ndarray, vocab_size: int) -> np.ndarray:
        """fairseq draws them a few at a time."""
        found: list[int] = []
        for row, count in enumerate(counts.tolist()):
            got: list[int] = []
            while len(got) < count:
                got += self._next(row, "tokens", self._left[row][0][1])
            assert len(got) == count
            found += got
        return np.array(found, np.int64)

    def offsets(self, highest: np.ndarray) -> np.ndarray:
        drawing = [(row, size) for row, size in enumerate(highest.tolist()) if size]
        return np.array([self._next(row, "offsets", size)[0] for row, size in drawing], np.int64)

    def all_used(self) -> bool:
        return not any(self._left)


def noiser(case: dict[str, Any]) -> Noiser:
    """Ours, for a case of `tools/goldens/_noise_cases.py`."""
    options = dict(case["options"])
    stop = options.pop("full_stop", FULL_STOP)
    starts = case["word_starts"]
    return Noiser(
        NoiseConfig(**options),
        vocab_size=case["vocab_size"],
        mask_id=MASK,
        full_stops=[stop],
        word_starts=None if starts is None else np.array(starts, bool),
    )
