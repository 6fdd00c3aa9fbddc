"""Blocks of tokens: how sentences of a store become the rows that a model is trained on.

Source: fairseq `data/token_block_dataset.py`, `token_block_utils_fast.pyx`, and how
`tasks/denoising.py` uses them, but for its defect: there the `</s>` that ends every sentence of a
store is removed, yet still counted, so that blocks overlap and documents run into each other. Here
sizes are those of what is left.
"""

import logging

import numpy as np

from bart_hk.data.ragged import ends, positions_within, starts
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore

BREAK_MODES = ("none", "complete", "complete_doc", "eos")
OVERSIZED = ("split", "keep", "error")

_log = logging.getLogger(__name__)


def block_slices(
    sizes: np.ndarray, break_mode: str, block_size: int, document_sep_len: int = 1
) -> np.ndarray:
    """Where blocks begin and end in sentences that lie end to end; fairseq's function.

    Args:
        sizes: int64 [n], tokens of each sentence.
        break_mode: "none": blocks of `block_size`, wherever sentences end; "complete": as many
            whole sentences as fit (one that is longer stays whole); "complete_doc": so, but no
            further than the document's end, which is an item of `document_sep_len`, left out, and
            blocks of one token are left out as well; "eos": every sentence.
        block_size: tokens.
        document_sep_len: see "complete_doc".

    Returns:
        int64 [blocks, 2].

    Raises:
        ValueError: there is no such mode, or a block has no room.
    """
    if break_mode not in BREAK_MODES:
        raise ValueError(f"sample_break_mode={break_mode!r} is not one of {', '.join(BREAK_MODES)}")
    sizes = np.asarray(sizes, np.int64)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    if break_mode == "eos":
        return np.stack([bounds[:-1], bounds[1:]], axis=1)
    if block_size < 1:
        raise ValueError(f"a block of {block_size} tokens holds nothing")
    if break_mode == "none":
        first = np.arange(0, bounds[-1], block_size)
        return np.stack([first, np.minimum(first + block_size, bounds[-1])], axis=1)
    count = len(sizes)
    item = np.arange(count)
    documents = break_mode == "complete_doc"
    separates = sizes == document_sep_len if documents else np.zeros(count, bool)
    separators = np.append(np.flatnonzero(separates), count)
    limit = separators[np.searchsorted(separators, item)]  # the end of the item's document
    until = np.searchsorted(bounds, bounds[:-1] + block_size, side="right") - 1
    until = np.minimum(until, limit)
    # A sentence that does not fit is a block of its own.
    until += (bounds[until] == bounds[:-1]) & (until < limit)
    follower = np.where(separates, item + 1, until).tolist()
    chain, at = [], 0
    while at < count:
        chain.append(at)
        at = follower[at]
    begin = np.array(chain, np.int64)
    begin = begin[~separates[begin]]
    slices = np.stack([bounds[begin], bounds[until[begin]]], axis=1)
    return slices[slices[:, 1] - slices[:, 0] > (1 if documents else 0)]


class TokenBlocks:
    """The blocks of a store.

    Args:
        store: its sentences end with `</s>`, or do not; an item without other tokens separates
            documents.
        block_size: tokens at most, `<s>` and `</s>` not counted.
        break_mode: as for `block_slices`.
        strip: the id of `</s>`, removed from both ends of every sentence; None leaves them.
        document_sep_len: tokens of an item that separates documents, when stripped.
        oversized: what becomes of a sentence that is longer than a block (and whole in
            "complete", "complete_doc" and "eos"): "split" cuts it into pieces of `block_size`,
            "keep" is fairseq's block that is too long, "error" refuses it.

    Attributes:
        sizes: int64 [blocks].

    Raises (when made):
        DataError: the store has no tokens, or a sentence is too long.
        ValueError: an option is not one of those that there are.
    """

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        break_mode: str = "complete_doc",
        *,
        strip: int | None,
        document_sep_len: int = 0,
        oversized: str = "split",
    ) -> None:
        if oversized not in OVERSIZED:
            raise ValueError(f"oversized={oversized!r} is not one of {', '.join(OVERSIZED)}")
        self.store = store
        begins, sizes = store.begins, store.sizes
        if strip is not None:
            begins, sizes = _stripped(store, strip)
        total = int(sizes.sum())
        if not total:
            raise DataError(f"{store.prefix}.bin has no text: {len(store)} sentences, all empty")
        self._begins, self._bounds = begins, np.concatenate([[0], np.cumsum(sizes)])
        whole = sizes
        if break_mode != "none" and (sizes > block_size).any():
            if oversized == "error":
                longest = int(sizes.argmax())
                raise DataError(
                    f"{store.prefix}.bin: sentence {longest} has {sizes[longest]} tokens, and a "
                    f"block {block_size}; take sample_break_mode=none, or have it split"
                )
            if oversized == "split":
                whole = _split(sizes, block_size)
        self._slices = block_slices(whole, break_mode, block_size, document_sep_len)
        if break_mode == "eos":  # what separates documents is no row
            self._slices = self._slices[self._slices[:, 1] > self._slices[:, 0]]
        self.sizes = self._slices[:, 1] - self._slices[:, 0]
        if not len(self.sizes):
            raise DataError(
                f"{store.prefix}.bin has no document of more than one token; there is nothing to "
                f"learn with sample_break_mode={break_mode}"
            )
        if lost := total - int(self.sizes.sum()):
            _log.info("%s: %d tokens in documents of one token are left out", store.prefix, lost)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, block: int) -> np.ndarray:
        """The tokens of a block, int32 [size]."""
        return self.take(np.array([block]))[0]

    def take(
        self, blocks: np.ndarray, bos: int | None = None, eos: int | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of some blocks, end to end, each between `bos` and `eos` where they are given.

        `eos` may be an id for each of the blocks.

        Returns:
            tokens int32 [N] and lengths int64 [B] that sum to N.
        """
        begin, end = self._slices[blocks].T
        # The sentences that a block has a part of; empty ones between them do no harm.
        first = np.searchsorted(self._bounds, begin, side="right") - 1
        count = np.searchsorted(self._bounds, end, side="left") - first
        sentence = np.repeat(first, count) + positions_within(count)
        from_ = np.maximum(self._bounds[sentence], np.repeat(begin, count))
        to = np.minimum(self._bounds[sentence + 1], np.repeat(end, count))
        at = self._begins[sentence] + from_ - self._bounds[sentence]
        tokens = self.store.ranges(at, to - from_)
        lengths = end - begin
        return _framed(tokens, lengths, bos, eos)


def _framed(
    tokens: np.ndarray, lengths: np.ndarray, bos: int | None, eos: int | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    before, after = int(bos is not None), int(eos is not None)
    if not before and not after:
        return tokens, lengths
    longer = lengths + before + after
    framed = np.empty(int(longer.sum()), np.int32)
    inner = np.ones(len(framed), bool)
    if bos is not None:
        framed[starts(longer)] = bos
        inner[starts(longer)] = False
    if eos is not None:
        framed[ends(longer) - 1] = eos
        inner[ends(longer) - 1] = False
    framed[inner] = tokens
    return framed, longer


def _stripped(store: TokenStore, token: int) -> tuple[np.ndarray, np.ndarray]:
    """Where sentences begin, and their sizes, without a token at their ends."""
    begins, sizes = store.begins.copy(), store.sizes.copy()
    for front in (False, True):
        left = np.flatnonzero(sizes)
        while left.size:
            at = begins[left] if front else begins[left] + sizes[left] - 1
            left = left[store.at(at) == token]
            sizes[left] -= 1
            if front:
                begins[left] += 1
            left = left[sizes[left] > 0]
    return begins, sizes


def _split(sizes: np.ndarray, block_size: int) -> np.ndarray:
    """Sizes with those above `block_size` cut into that and a rest; empty ones stay."""
    pieces = np.maximum(-(-sizes // block_size), 1)
    found = np.full(int(pieces.sum()), block_size, np.int64)
    found[ends(pieces) - 1] = sizes - (pieces - 1) * block_size
    return found
