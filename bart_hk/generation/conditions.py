"""What single rows ask of a search, checked and made into arrays: prefixes, phrases, random keys.

Shapes: B batch, P longest prefix.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bart_hk.generation.options import GenerationOptions

# (the row's number, ids so far with the decoder's start token) -> ids that may come next
AllowedTokens = Callable[[int, np.ndarray], Sequence[int]]


def check_ids(what: str, ids: Sequence[int] | np.ndarray, vocabulary: int) -> None:
    """
    Raises:
        ValueError: an id is outside the vocabulary.
    """
    for number in ids:
        if not 0 <= number < vocabulary:
            raise ValueError(
                f"{what} holds the id {number}, outside the vocabulary of {vocabulary}"
            )


def checked_prefixes(
    prefixes: Sequence[Any] | None,
    options: GenerationOptions,
    max_len: np.ndarray,  # int32 [B], the greatest lengths
    config: Any,
) -> list[np.ndarray]:
    """The forced first tokens of each row: int32 [P_i], without padding.

    Raises:
        ValueError: they are not one for each row, too long, hold `</s>` or an id outside the
            vocabulary.
    """
    rows, eos, pad = len(max_len), config.eos_token_id, config.pad_token_id
    if prefixes is None:
        first = options.forced_bos_token_id
        if first is None:
            first = config.forced_bos_token_id
        else:
            check_ids("forced_bos_token_id", [first], config.vocab_size)
            if first in (eos, pad):
                raise ValueError(
                    f"forced_bos_token_id={first} is </s> or <pad>, with which no text begins"
                )
        return [np.array([] if first is None else [first], np.int32)] * rows
    if options.forced_bos_token_id is not None:
        raise ValueError(
            "forced_bos_token_id and prefix_tokens exclude each other: begin the prefix with it"
        )
    if len(prefixes) != rows:
        raise ValueError(f"{len(prefixes)} prefixes do not go with {rows} inputs")
    checked = []
    for i, prefix in enumerate(prefixes):
        ids = np.asarray(prefix if np.size(prefix) else np.zeros(0, np.int32))
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"prefix_tokens {i} must be a 1-D array of integer ids, "
                f"not {ids.dtype} of shape {ids.shape}"
            )
        check_ids(f"prefix_tokens {i}", ids, config.vocab_size)
        ids = ids[ids != pad].astype(np.int32)
        if eos in ids:
            raise ValueError(
                f"prefix_tokens {i} holds </s> ({eos}), which ends a hypothesis; leave it out"
            )
        if len(ids) > max_len[i]:
            raise ValueError(
                f"prefix_tokens {i} has {len(ids)} tokens, more than the greatest length of "
                f"{max_len[i]}; raise max_len_b or shorten it"
            )
        checked.append(ids)
    return checked


def prefix_array(prefixes: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """int32 [rows, P] for `Limits.prefix`; P comes from a short list, so that few are compiled."""
    longest = max((len(prefix) for prefix in prefixes), default=0)
    width = 1 << max(longest - 1, 0).bit_length()
    array = np.full((rows, width), -1, np.int32)
    for row, prefix in enumerate(prefixes):
        array[row, : len(prefix)] = prefix
    return array


def draw_keys(
    rows: Sequence[np.ndarray], seed: int, numbers: Sequence[int] | None = None
) -> np.ndarray:
    """Keys for the draws of each row: uint32 [B, 2].

    A key follows from the seed, the row's ids, and how many equal rows came before it, or its
    number if there are `numbers`: neither from the row's place nor from its neighbours.

    Raises:
        ValueError: there are not as many numbers as rows.
    """
    if numbers is not None and len(numbers) != len(rows):
        raise ValueError(f"{len(numbers)} draw_numbers do not go with {len(rows)} inputs")
    seen: Counter[bytes] = Counter()
    keys = np.empty((len(rows), 2), np.uint32)
    for i, row in enumerate(rows):
        ids = row.astype("<i4").tobytes()
        name = b"%d %d " % (seed, seen[ids] if numbers is None else numbers[i])
        seen[ids] += 1
        keys[i] = np.frombuffer(hashlib.blake2b(name + ids, digest_size=8).digest(), "<u4")
    return keys


def allowed_mask(
    function: AllowedTokens,
    numbers: Sequence[int] | np.ndarray,  # of the rows, as the user counts them
    histories: np.ndarray,  # int [B, W, N], ids so far
    alive: np.ndarray,  # bool [B, W], beams that ask
    vocabulary: int,
) -> np.ndarray:
    """bool [B, W, V]: what the function allows each beam that is alive.

    Raises:
        ValueError: it allows a beam nothing, or an id outside the vocabulary.
    """
    mask = np.zeros((*alive.shape, vocabulary), bool)
    for row, beam in zip(*np.nonzero(alive), strict=True):
        so_far = histories[row, beam]
        given = function(int(numbers[row]), so_far)
        ids = np.asarray([] if given is None else list(given))
        if ids.size and (ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer)):
            raise ValueError(
                f"prefix_allowed_tokens_fn must give ids for input {numbers[row]}, not {given!r}"
            )
        if not ids.size:
            raise ValueError(
                f"prefix_allowed_tokens_fn allows input {numbers[row]} nothing after "
                f"{so_far.tolist()}; it must allow at least one id, such as </s>"
            )
        if ids.min() < 0 or ids.max() >= vocabulary:
            wrong = ids[(ids < 0) | (ids >= vocabulary)][0]
            raise ValueError(
                f"prefix_allowed_tokens_fn allows input {numbers[row]} the id {wrong}, outside "
                f"the vocabulary of {vocabulary}"
            )
        mask[row, beam, ids] = True
    return mask
