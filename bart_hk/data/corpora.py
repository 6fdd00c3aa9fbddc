"""Several corpora as one, with weights.

Source: fairseq `tasks/multilingual_denoising.py` (how much of each language is seen).
"""

import math
from collections.abc import Mapping

import numpy as np

from bart_hk.data.blocks import TokenBlocks
from bart_hk.data.readers import DataError


def smoothed_weights(sizes: Mapping[str, int], alpha: float) -> dict[str, float]:
    """Weights by which corpora of some sizes are seen as often as their smoothed shares say.

    A corpus with the share p of all rows gets p^alpha, normalised: 1 leaves everything, less gives
    small ones more. The weighted sizes sum to what the sizes do.

    Raises:
        DataError: `alpha` is negative or not finite, or a corpus is empty.
    """
    if not 0 <= alpha < math.inf:
        raise DataError(f"multilang_sampling_alpha={alpha} must be at least 0, and finite")
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"the corpus {name} is empty")
    total = sum(sizes.values())
    smoothed = {name: (size / total) ** alpha for name, size in sizes.items()}
    scale = total / sum(smoothed.values())
    return {name: scale * smoothed[name] / sizes[name] for name in sizes}


class Corpora:
    """The blocks of several stores.

    Args:
        parts: blocks under the names of their corpora; at least one.
        weights: how often each is seen in an epoch, 1 by default. 2.3 is twice, and 3 of 10 rows
            once more, others in every epoch.

    Attributes:
        sizes: int64 [n], tokens of each row, corpus after corpus.

    Raises (when made):
        DataError: a weight is negative, or of a corpus that there is not.
    """

    def __init__(
        self, parts: Mapping[str, TokenBlocks], weights: Mapping[str, float] | None = None
    ) -> None:
        self.names, self._parts = list(parts), list(parts.values())
        weights = dict(weights or {})
        if unknown := weights.keys() - parts.keys():
            raise DataError(
                f"there is no corpus {min(unknown)!r} to weigh, only {', '.join(self.names)}"
            )
        for name, weight in weights.items():
            if not 0 <= weight < 1e6:
                raise DataError(f"the weight of {name}, {weight}, must be at least 0")
        self._weights = [weights.get(name, 1.0) for name in self.names]
        self.sizes = np.concatenate([part.sizes for part in self._parts])
        self._ends = np.cumsum([len(part) for part in self._parts])
        if not self.rows(0, 0).size:
            raise DataError("the weights of the corpora leave no row")

    def __len__(self) -> int:
        return len(self.sizes)

    def rows(self, seed: int, epoch: int) -> np.ndarray:
        """What an epoch sees, int64, in the order of the corpora.

        A row that is seen again has `len(self)` added, twice the third time: so each time has a
        number, and a noise, of its own.
        """
        found, begin = [], 0
        for number, (end, weight) in enumerate(zip(self._ends, self._weights, strict=True)):
            rows = np.arange(begin, end)
            whole = int(weight)
            found += [rows + len(self) * time for time in range(whole)]
            some = round((weight - whole) * len(rows))
            if some:
                rng = np.random.default_rng([seed, epoch, number])
                chosen = np.sort(rng.permutation(len(rows))[:some])
                found.append(rows[chosen] + len(self) * whole)
            begin = end
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of some of `rows`, int64."""
        return self.sizes[rows % len(self)]

    def take(
        self, rows: np.ndarray, bos: int | None = None, eos: int | Mapping[str, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of some of `rows`, as `TokenBlocks.take`; `eos` may be one for each corpus."""
        plain = np.asarray(rows) % len(self)
        part = np.searchsorted(self._ends, plain, side="right")
        last = [eos[name] if isinstance(eos, Mapping) else eos for name in self.names]
        if len(self._parts) == 1:
            return self._parts[0].take(plain, bos, last[0])
        pieces: list[np.ndarray] = [np.zeros(0, np.int32)] * len(plain)
        for number in np.unique(part):
            at = np.flatnonzero(part == number)
            begin = self._ends[number] - len(self._parts[number])
            tokens, lengths = self._parts[number].take(plain[at] - begin, bos, last[number])
            for i, row in zip(at, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True):
                pieces[i] = row
        return np.concatenate(pieces), np.array([len(p) for p in pieces], np.int64)

    def where(self, row: int) -> str:
        """`STORE, block N`, for messages about a row."""
        plain = row % len(self)
        part = int(np.searchsorted(self._ends, plain, side="right"))
        begin = self._ends[part] - len(self._parts[part])
        return f"{self._parts[part].store.prefix}, block {plain - begin}"
