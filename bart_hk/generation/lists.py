"""What goes into a search or a scoring and what comes out: checked rows, batches, hypotheses."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bart_hk.data.batching import buckets_up_to, plan_shapes
from bart_hk.errors import NothingFoundWarning

# What a batch holds at most, unless told otherwise.
MAX_TOKENS = 8192
BATCH_SIZE = 32

Hypothesis = dict[str, Any]


def checked_rows(what: str, rows: Sequence[Any], longest: int, vocabulary: int) -> list[np.ndarray]:
    """`rows` as int32 arrays [S_i], each of at least one id.

    Args:
        what: a row's name in an error, such as "source".
        longest: positions of the model.
        vocabulary: ids are below it.

    Raises:
        ValueError: a row is no 1-D array of ids, is empty, too long, or holds an id outside the
            vocabulary.
    """
    checked = []
    for i, row in enumerate(rows):
        ids = np.asarray(row)
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise ValueError(
                f"{what} {i} must be a 1-D array of integer ids, "
                f"not {ids.dtype} of shape {ids.shape}"
            )
        if not ids.size:
            raise ValueError(f"{what} {i} is empty; it needs at least one id, such as </s>")
        if ids.size > longest:
            raise ValueError(
                f"{what} {i} has {ids.size} tokens, but the model has only {longest} "
                "positions; shorten it"
            )
        outside = ids[(ids < 0) | (ids >= vocabulary)]
        if outside.size:
            raise ValueError(
                f"{what} {i} holds the id {outside[0]}, outside the vocabulary of {vocabulary}"
            )
        checked.append(ids.astype(np.int32))
    return checked


def renumbered(message: str, numbers: Sequence[int]) -> str:
    """A message about some inputs by their places among them, with their `numbers` instead."""

    def number(match: re.Match[str]) -> str:
        place = int(match[2])
        return f"{match[1]} {numbers[place] if place < len(numbers) else place}"

    return re.sub(r"\b(input|prefix_tokens) (\d+)\b", number, message)


@contextlib.contextmanager
def numbering(numbers: Sequence[int]) -> Iterator[None]:
    """Errors and warnings of a search of some inputs name them by their `numbers`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except ValueError as error:
            raise ValueError(renumbered(str(error), numbers)) from None
    for warning in caught:
        said = warning.message
        if isinstance(said, NothingFoundWarning):
            said = NothingFoundWarning(renumbered(str(said), numbers))
        warnings.warn_explicit(said, warning.category, warning.filename, warning.lineno)


def check_bounds(max_tokens: Any, batch_size: Any) -> None:
    """
    Raises:
        ValueError: a bound of a batch is no number of 1 and more.
    """
    for name, value in (("max_tokens", max_tokens), ("batch_size", batch_size)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number, at least 1, not {value!r}")


def plan(
    lengths: Sequence[int] | np.ndarray, positions: int, max_tokens: int, batch_size: int
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """`plan_shapes` for sources of these lengths and a model of that many positions.

    Raises:
        ValueError: a bound is no number of 1 and more.
    """
    check_bounds(max_tokens, batch_size)
    buckets = buckets_up_to(positions)
    return plan_shapes(lengths, max_tokens=max_tokens, batch_size=batch_size, buckets=buckets)


def hypothesis(
    tokens: np.ndarray,
    score: Any,
    positional_scores: np.ndarray,
    attention: np.ndarray | None = None,
    alignment: Any = None,
) -> Hypothesis:
    """fairseq's dictionary of a hypothesis of N tokens for a source of S.

    Args:
        tokens: int32 [N].
        score: a number, kept as float32.
        positional_scores: float32 [N].
        attention: float32 [S, N]; empty where nobody asked for it.
        alignment: see `bart_hk.generation.alignment`; empty where nobody asked for it.
    """
    empty = np.empty(0, np.float32)
    return {
        "tokens": tokens,
        "score": np.float32(score),
        "attention": empty if attention is None else attention,
        "alignment": empty if alignment is None else alignment,
        "positional_scores": positional_scores,
    }
