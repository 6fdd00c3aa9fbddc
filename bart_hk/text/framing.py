"""Sentences and pairs as one row of ids: `<s> A </s>`, `<s> A </s> B </s>`."""

from collections.abc import Sequence

import numpy as np


def frame(
    parts: Sequence[Sequence[int]], bos: int | None, eos: int, separator: Sequence[int] = ()
) -> np.ndarray:
    """`<s> A </s>` and for each further part `separator B </s>`: int32 [N]. No `<s>` for None.

    Source: fairseq `BARTHubInterface.encode`; the separator is empty there by default, or `</s>`.
    """
    ids = [] if bos is None else [bos]
    for number, part in enumerate(parts):
        ids += [*(separator if number else ()), *part, eos]
    return np.array(ids, np.int32)


def truncate(parts: Sequence[Sequence[int]], budget: int) -> list[Sequence[int]]:
    """Cuts parts at their ends until they have `budget` tokens together, the longest first.

    Of equally long parts the later ones are cut first.
    """
    lengths = [len(part) for part in parts]
    while sum(lengths) > max(budget, 0):
        longest = max(lengths)
        among = [i for i, length in enumerate(lengths) if length == longest]
        # Down to the next shorter part, or as far as needed.
        below = max((length for length in lengths if length < longest), default=0)
        excess = sum(lengths) - max(budget, 0)
        step, rest = divmod(min(excess, (longest - below) * len(among)), len(among))
        for position, i in enumerate(reversed(among)):
            lengths[i] -= step + (position < rest)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]
