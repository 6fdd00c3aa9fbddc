"""What each target token was made from: alignments from attention, and `<unk>` replaced by it.

Source: fairseq `utils.py` (extract_hard_alignment, extract_soft_alignment, replace_unk).

Shapes: S source length, N target length.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike

import numpy as np

# (position in the source, position in the target)
Pairs = list[tuple[int, int]]


def hard(
    attention: np.ndarray, source: np.ndarray, target: np.ndarray, *, pad: int, eos: int
) -> Pairs:
    """For each token of the target the token of the source that it attends to most.

    Positions do not count `</s>` and padding, on neither side, and these are never aligned; `<s>`
    is a token like any other. Of equal weights the first in the source counts.

    Args:
        attention: float [S, N] (a hypothesis' "attention"), the weights of each target token.
        source, target: int [S] and [N] ids.
        pad, eos: their ids.

    Returns:
        (position in the source, position in the target), in the order of the target; nothing where
        one side holds only `</s>` and padding.
    """
    _check(attention, source, target)
    real_source = (source != pad) & (source != eos)
    real_target = (target != pad) & (target != eos)
    if not real_source.any():
        return []
    weights = np.where(real_source[:, None], attention, -np.inf)[:, real_target]
    place = np.cumsum(real_source) - 1  # of each source token among the real ones
    return [(int(place[s]), t) for t, s in enumerate(weights.argmax(axis=0))]


def soft(attention: np.ndarray, source: np.ndarray, target: np.ndarray, *, pad: int) -> np.ndarray:
    """The weights themselves, one row for each token of the target: float32 [N, S].

    Padding is left out, `</s>` is not. fairseq gives the same numbers as strings of six decimals.

    Args: as for `hard`.
    """
    _check(attention, source, target)
    return np.asarray(attention, np.float32)[source != pad][:, target != pad].T


def _check(attention: np.ndarray, source: np.ndarray, target: np.ndarray) -> None:
    if np.shape(attention) != (len(source), len(target)):
        raise ValueError(
            f"attention of shape {np.shape(attention)} is not of a source of {len(source)} tokens "
            f"and a target of {len(target)}"
        )


def replace_unk(
    target: Sequence[str],
    source: Sequence[str],
    pairs: Pairs,
    *,
    unk: str,
    translate: Callable[[str], str] | None = None,
) -> list[str]:
    """`target`, in which every `unk` is what stands at the place in `source` it is aligned with.

    Args:
        target, source: words, or symbols of a dictionary, at the positions of `pairs`: with `<s>`
            where the ids had it, without `</s>` and padding.
        pairs: from `hard`. An `unk` that is in none of them stays.
        unk: how the unknown symbol is written.
        translate: what to write for a word of the source; the word itself by default.
    """
    aligned = {at: origin for origin, at in pairs}
    words = list(target)
    for at, word in enumerate(words):
        if word == unk and at in aligned:
            origin = source[aligned[at]]
            words[at] = origin if translate is None else translate(origin)
    return words


def read_dictionary(path: str | PathLike) -> Mapping[str, str]:
    """An alignment dictionary: a word of the source and one of the target on every line.

    What follows them on a line is ignored, as in fairseq, where it is often a probability.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has only one word, or the file is not UTF-8; the line is named.
    """
    words = {}
    try:
        opened = open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"the alignment dictionary {path} does not exist") from None
    with opened as file:
        for number, line in enumerate(file, start=1):
            try:
                columns = line.decode("utf-8").split()
            except UnicodeDecodeError:
                raise ValueError(f"{path}, line {number}: not UTF-8; convert the file") from None
            if len(columns) == 1:
                raise ValueError(
                    f"{path}, line {number}: {columns[0]!r} stands alone; a line holds a word and "
                    "its translation"
                )
            if columns:
                words[columns[0]] = columns[1]
    return words
