"""What the hub takes and returns: token ids in several forms, NumPy arrays with tensor manners."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bart_hk.data.batching import pad_rows


class _Size(int):
    """A number of elements that can be called, as a tensor's `size()` is."""

    shape: tuple[int, ...]

    def __call__(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]


class Array(np.ndarray):
    """A NumPy array for which `x.size()`, `x.size(0)` and `x.argmax(dim=1)` work too.

    It behaves as an ndarray in every other way (`x.size` is still the number of elements), and
    functions of torch take it where torch is installed.
    """

    @property
    def size(self) -> Any:
        size = _Size(super().size)
        size.shape = self.shape
        return size

    def argmax(self, axis: Any = None, *args: Any, dim: Any = None, **kwargs: Any) -> Any:
        """`numpy.ndarray.argmax`; `dim` is torch's name for `axis`."""
        result = super().argmax(axis if dim is None else dim, *args, **kwargs)
        return as_array(result)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        import torch

        def convert(x: Any) -> Any:
            if isinstance(x, Array):
                return torch.from_numpy(np.array(x))
            return type(x)(map(convert, x)) if isinstance(x, (list, tuple)) else x

        named = {name: convert(value) for name, value in (kwargs or {}).items()}
        return function(*convert(tuple(args)), **named)


def as_array(x: Any) -> Array:
    """`x` (NumPy's or jax's, or a number) as an `Array`, copied only from another device."""
    return np.asarray(x).view(Array)


def with_arrays(result: Mapping[str, Any]) -> dict[str, Any]:
    """A dictionary whose arrays and NumPy numbers are `Array`s; the rest stays as it is."""
    return {
        key: as_array(value) if isinstance(value, np.ndarray | np.generic) else value
        for key, value in result.items()
    }


def collate_tokens(
    values: Sequence[Any],
    pad_idx: int,
    eos_idx: int | None = None,
    left_pad: bool = False,
    move_eos_to_beginning: bool = False,
    pad_to_length: int | None = None,
    pad_to_multiple: int = 1,
    pad_to_bsz: int | None = None,
) -> Array:
    """1-D arrays of ids as one padded int32 [B, S] (fairseq `data_utils.collate_tokens`).

    Args:
        values: B 1-D arrays.
        pad_idx: id to fill with.
        eos_idx: with `move_eos_to_beginning`, what to put first; each row's last id if None.
        left_pad: pad on the left.
        move_eos_to_beginning: shift each row right by one, dropping its last id.
        pad_to_length: the least S.
        pad_to_multiple: of which S is a multiple.
        pad_to_bsz: the least B; rows beyond the given ones are all padding.

    Raises:
        ValueError: there are no arrays.
    """
    rows = [np.asarray(value).reshape(-1) for value in values]
    if not rows:
        raise ValueError("collate_tokens needs at least one array of ids, got an empty list")
    if move_eos_to_beginning:
        rows = [
            np.concatenate([row[-1:] if eos_idx is None else [eos_idx], row[:-1]]) for row in rows
        ]
    length = max(pad_to_length or 0, *map(len, rows))
    length = -(-length // pad_to_multiple) * pad_to_multiple
    count = max(len(rows), pad_to_bsz or 0)
    batch = pad_rows([row[::-1] for row in rows] if left_pad else rows, pad_idx, length, count)
    return as_array(batch[:, ::-1].copy() if left_pad else batch)


class Rows:
    """Token ids as the hub takes them: one 1-D array, a padded [B, S], or a list of 1-D arrays.

    Attributes:
        rows: int32 1-D arrays, without the padding at their ends. (fairseq takes padding on the
            right, and on the left computes something else; here both are as if it was not there.)
    """

    def __init__(self, tokens: Any, pad: int, vocab_size: int) -> None:
        """Checks and separates `tokens`.

        Raises:
            TypeError: text instead of ids, or ids that are not integers.
            ValueError: an empty batch, a row without a token, an id outside the vocabulary.
        """
        if isinstance(tokens, str) or _holds_text(tokens):
            raise TypeError("this takes token ids, not text; call encode(text) first")
        if isinstance(tokens, (list, tuple)) and not tokens:
            raise ValueError("empty batch: give at least one row of token ids")
        self._is_list = isinstance(tokens, (list, tuple)) and any(np.ndim(t) for t in tokens)
        arrays = list(tokens) if self._is_list else [np.asarray(tokens)]
        if not self._is_list and arrays[0].ndim == 2:
            arrays = list(arrays[0])
        if not arrays:
            raise ValueError("empty batch: give at least one row of token ids")
        padded = [_ids(row, i, vocab_size) for i, row in enumerate(arrays)]
        self._lengths = [len(row) for row in padded]
        self._spans = [_span(row, pad) for row in padded]
        self.rows = [row[span] for row, span in zip(padded, self._spans, strict=True)]

    def like_input(self, results: list[np.ndarray]) -> Any:
        """Per-row results [T_i, ...] as fairseq shapes them for this kind of input.

        One array: [1, T, ...]; a padded array: [B, S, ...]; a list: a list. At padding: zero.
        """
        padded = []
        for result, span, length in zip(results, self._spans, self._lengths, strict=True):
            out = np.zeros((length, *result.shape[1:]), result.dtype)
            out[span] = result
            padded.append(as_array(out))
        return padded if self._is_list else as_array(np.stack(padded))


def _holds_text(tokens: Any) -> bool:
    return isinstance(tokens, (list, tuple)) and any(isinstance(t, str) for t in tokens)


def _span(row: np.ndarray, pad: int) -> slice:
    """From a row's first token to its last; a row that is all padding keeps one."""
    real = np.flatnonzero(row != pad)
    return slice(real[0], real[-1] + 1) if len(real) else slice(0, 1)


def _ids(row: Any, number: int, vocab_size: int) -> np.ndarray:
    array = np.asarray(row)
    if array.ndim != 1:
        raise ValueError(f"row {number} has shape {array.shape}; a row of ids is 1-D")
    if not len(array):
        raise ValueError(f"row {number} is empty: it has not even <s> and </s>")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"row {number} has dtype {array.dtype}; token ids are integers")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"row {number} holds the id {low if low < 0 else high}, outside the vocabulary of "
            f"{vocab_size} (0 to {vocab_size - 1})"
        )
    return array.astype(np.int32)
