"""Random draws for noise, of many rows at once, from a source that is told outright.

Counts and sizes are int64 [B], one for each row; results lie end to end, row after row.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

# Sets these streams apart from others of the same seed.
_PURPOSE = 0x4E4F495345  # "NOISE"
_AHEAD = 512  # numbers that are drawn at once at least; more than enough for a short row
_FEW = 8  # entries of a permutation that are picked rather than sorted


class Draws(Protocol):
    """What noise draws, in the order in which fairseq draws it."""

    def permutations(self, sizes: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The first `kept` entries of a random order of 0 ... size - 1, for every row."""

    def uniforms(self, counts: np.ndarray) -> np.ndarray:
        """Floats in [0, 1)."""

    def spans(self, counts: np.ndarray, cumulative: np.ndarray) -> np.ndarray:
        """Numbers 0, 1, ... with the cumulative probabilities float64 [K]."""

    def tokens(self, counts: np.ndarray, vocab_size: int) -> np.ndarray:
        """Ids in [1, vocab_size)."""

    def offsets(self, highest: np.ndarray) -> np.ndarray:
        """A number in [1, highest] for every row where that is above 0."""


class KeyedDraws:
    """Draws that are a function of (seed, epoch, index) for each row, through numpy's Philox.

    Philox is a counter through a block cipher: the key is the seed, and the counter (how far a row
    has come, its index, the epoch). There is no state but how far each row has come.

    Args:
        seed: of the run, below 2**64.
        epoch: at least 0.
        indices: of the B rows, at least 0.
    """

    def __init__(self, seed: int, epoch: int, indices: Sequence[int] | np.ndarray) -> None:
        self._counters = np.zeros((len(indices), 4), np.uint64)  # of what is not drawn yet
        self._counters[:, 1] = indices
        self._counters[:, 2] = epoch
        self._bits = np.random.Philox()
        self._state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": None, "key": np.array([seed, _PURPOSE], np.uint64)},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._drawn = np.zeros((len(indices), 0), np.uint64)
        self._used = np.zeros(len(indices), np.int64)

    def _raw(self, counts: np.ndarray) -> np.ndarray:
        """The next numbers of each row's stream: uniform uint64 [sum(counts)]."""
        until = self._used + counts
        if until.max(initial=0) > self._drawn.shape[1]:
            self._draw_up_to(int(until.max()))
        bounds = zip(self._drawn, self._used.tolist(), until.tolist(), strict=True)
        found = [row[begin:end] for row, begin, end in bounds if end > begin]
        self._used = until
        return np.concatenate(found) if found else np.zeros(0, np.uint64)

    def _draw_up_to(self, needed: int) -> None:
        """Lengthens the drawn part of every row's stream, beyond what is needed now."""
        had = self._drawn.shape[1]
        more = max(needed + 256, 2 * had, _AHEAD) // 4 * 4 - had
        drawn = np.empty((len(self._drawn), had + more), np.uint64)
        drawn[:, :had] = self._drawn
        state, bits = self._state, self._bits
        for row, counter in zip(drawn, self._counters, strict=True):
            state["state"]["counter"] = counter
            bits.state = state
            row[had:] = bits.random_raw(more)
        self._counters[:, 0] += np.uint64(more // 4)  # one step gives four
        self._drawn = drawn

    def permutations(self, sizes: np.ndarray, kept: np.ndarray) -> np.ndarray:
        few = (kept <= _FEW) & (sizes > 4 * kept)
        if not few.any():
            return self._sorted(sizes, kept)
        if few.all():
            return self._picked(sizes, kept)
        found = np.empty(int(kept.sum()), np.int64)
        picked = np.repeat(few, kept)
        # Each row draws from its own stream, so it does not matter who comes first.
        found[picked] = self._picked(np.where(few, sizes, 0), np.where(few, kept, 0))
        found[~picked] = self._sorted(np.where(few, 0, sizes), np.where(few, 0, kept))
        return found

    def _sorted(self, sizes: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """By sorting random numbers; their lowest bits say where each was."""
        most = int(sizes.max(initial=0))
        bits = np.uint64(max(most, 1).bit_length())
        inside = np.arange(most) < sizes[:, None]
        keys = np.full(inside.shape, np.iinfo(np.uint64).max)
        keys[inside] = self._raw(sizes) >> bits << bits
        keys |= np.arange(most, dtype=np.uint64)
        # Whatever a row lacks sorts last: a real key's high bits are all ones once in 2**40.
        keys.sort(axis=1)
        chosen = keys[np.arange(most) < kept[:, None]]
        return (chosen & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)

    def _picked(self, sizes: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """By picking a few, one after the other, from those that are left."""
        most = int(kept.max(initial=0))
        inside = np.arange(most) < kept[:, None]
        drawn = np.zeros(inside.shape)
        drawn[inside] = self.uniforms(kept)
        chosen = (drawn * (sizes[:, None] - np.arange(most))).astype(np.int64)
        for step in range(1, most):
            # The number of one among those left, counted without the ones chosen before.
            before = np.sort(chosen[:, :step], axis=1)
            for other in range(step):
                chosen[:, step] += chosen[:, step] >= before[:, other]
        return chosen[inside]

    def uniforms(self, counts: np.ndarray) -> np.ndarray:
        return (self._raw(counts) >> np.uint64(11)) * 2.0**-53

    def spans(self, counts: np.ndarray, cumulative: np.ndarray) -> np.ndarray:
        found = np.searchsorted(cumulative, self.uniforms(counts), side="right")
        return np.minimum(found, len(cumulative) - 1)

    def tokens(self, counts: np.ndarray, vocab_size: int) -> np.ndarray:
        return 1 + (self.uniforms(counts) * (vocab_size - 1)).astype(np.int64)

    def offsets(self, highest: np.ndarray) -> np.ndarray:
        some = highest > 0
        drawn = self.uniforms(some.astype(np.int64))
        return 1 + (drawn * highest[some]).astype(np.int64)
