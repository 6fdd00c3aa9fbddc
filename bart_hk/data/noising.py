"""BART's noise: what is done to a text before the model is asked for the original.

Source: fairseq `data/denoising_dataset.py` and section 2.2 of the paper. Given the same draws, the
result is fairseq's to the token (`Draws` says what is drawn, and in which order); many rows are
noised in one pass. `KeyedDraws` makes a row's draws a function of (seed, epoch, index), so its
noise depends neither on the rows beside it nor on who reads it when; fairseq's does.

Rows are ids `<s> ... </s>`, given end to end: tokens int [N], lengths int64 [B] that sum to N, each
at least 2. `<s>` and `</s>` stay where they are.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bart_hk.data.draws import Draws
from bart_hk.data.ragged import ends, first_of_each, positions_within, starts

MASK_LENGTHS = ("subword", "word", "span-poisson")
REPLACE_LENGTHS = (-1, 0, 1)
SENTENCE_ENDS = ".!?\u3002\uff01\uff1f\u0964\u2026"
_CLOSING = "\"'\u201d\u2019\u00bb)]}*_"


@dataclass(frozen=True)
class NoiseConfig:
    """What is done to a text, under fairseq's names and in this order.

    Raises (when made):
        ValueError: a value is not one of those that there are.
    """

    permute_sentences: float = 0.0  # share of the sentences that change places
    mask: float = 0.0  # share of the words that spans are drawn for; overlaps lower what is hidden
    mask_length: str = "subword"  # "subword", "word", "span-poisson": what is masked as one
    poisson_lambda: float = 3.0  # mean length of a span, in words; those of length 0 insert a mask
    replace_length: int = 1  # masks per span: -1 one for each token, 0 none (deletion), 1
    mask_random: float = 0.0  # share of the masks that are a random token instead
    permute: float = 0.0  # share of the tokens that change places; fairseq never calls its own
    insert: float = 0.0  # masks to insert, as a share of the length
    rotate: float = 0.0  # share of the rows that begin at a random token

    def __post_init__(self) -> None:
        for name in ("permute_sentences", "mask", "mask_random", "permute", "insert", "rotate"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be in [0, 1]")
        if self.mask_length not in MASK_LENGTHS:
            known = ", ".join(MASK_LENGTHS)
            raise ValueError(f"mask_length={self.mask_length!r} is not one of {known}")
        if self.replace_length not in REPLACE_LENGTHS:
            raise ValueError(f"replace_length={self.replace_length} is not one of -1, 0, 1")
        if self.mask_length == "subword" and self.replace_length == -1:
            raise ValueError("mask_length=subword needs replace_length=1 or 0")
        if not 0 < self.poisson_lambda <= 64:
            raise ValueError(f"poisson_lambda={self.poisson_lambda} must be in (0, 64]")

    @property
    def keeps_places(self) -> bool:
        """Whether every token stays where it is, or something else is in its place."""
        in_place = (("subword", 1), ("word", -1))
        moves = self.permute_sentences or self.permute or self.insert or self.rotate
        masks_in_place = not self.mask or (self.mask_length, self.replace_length) in in_place
        return masks_in_place and not moves


# The share of text that the paper's comparison hides is not given there; .3 is that of its models.
_INFILLING = NoiseConfig(mask=0.3, mask_length="span-poisson", poisson_lambda=3.0)
_PAPER = dataclasses.replace(_INFILLING, permute_sentences=1.0)
PRESETS = {
    # The five transformations of the paper's section 2.2 and Table 1.
    "token_masking": NoiseConfig(mask=0.3),
    "token_deletion": NoiseConfig(mask=0.3, replace_length=0),
    "text_infilling": _INFILLING,
    "sentence_permutation": NoiseConfig(permute_sentences=1.0),
    "document_rotation": NoiseConfig(rotate=1.0),
    # Two of them together: as the paper says, and the command of its authors (fairseq issue 1899).
    "paper": _PAPER,
    "bart": dataclasses.replace(_PAPER, poisson_lambda=3.5, mask_random=0.1),
    "none": NoiseConfig(),
}


def span_probabilities(poisson_lambda: float) -> np.ndarray:
    """Probabilities of the span lengths 0, 1, ...: Poisson's, cut where fairseq cuts them.

    Float64 [K], which sums to 1.
    """
    found: list[float] = []
    while len(found) < 128 and not (found and found[-1] < 1e-7):
        k = len(found)
        found.append(math.exp(k * math.log(poisson_lambda) - poisson_lambda - math.lgamma(k + 1)))
    return np.array(found) / sum(found)


class WordBPE(Protocol):
    """What tells where words begin."""

    def is_beginning_of_word(self, symbol: str) -> bool: ...


class Symbols(Protocol):
    """The dictionary, as far as it is needed here."""

    nspecial: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...


def word_starts(bpe: object, dictionary: Symbols) -> np.ndarray:
    """Which ids begin a word: bool [V]. Special symbols and fillers do.

    From the tokenizer itself: fairseq's `get_whole_word_mask` knows GPT-2's only, whatever the
    files that the task was given.

    Raises:
        ValueError: the tokenizer does not tell words apart.
    """
    begins = getattr(bpe, "is_beginning_of_word", None)
    if begins is None:
        raise ValueError(
            f"a {type(bpe).__name__} does not tell where words begin; take mask_length=subword"
        )
    table = np.ones(len(dictionary), bool)
    for index in range(dictionary.nspecial, len(dictionary)):
        symbol = dictionary[index]
        table[index] = symbol.startswith("madeupword") or begins(symbol)
    return table


def full_stops(
    bpe: object, dictionary: Symbols, characters: str = SENTENCE_ENDS
) -> tuple[int, ...]:
    """The ids that end a sentence: punctuation whose last mark, quotes and brackets aside, does.

    fairseq knows one, GPT-2's ".", and takes `</s>` with any other tokenizer.
    """
    join = getattr(bpe, "join")  # noqa: B009
    found = []
    for index in range(dictionary.nspecial, len(dictionary)):
        text = join([dictionary[index]]).strip()
        mark = text.rstrip(_CLOSING)
        if mark and mark[-1] in characters and not any(c.isalnum() or c == "\ufffd" for c in text):
            found.append(index)
    return tuple(found)


class Noiser:
    """The noise of a configuration over a vocabulary.

    Args:
        config: what is done.
        vocab_size: V; random tokens are drawn from [1, V), as fairseq draws them.
        mask_id: of `<mask>`.
        full_stops: ids that end a sentence, for `permute_sentences`.
        word_starts: bool [V], for `mask_length` other than "subword"; None takes every token for a
            word.

    Raises:
        ValueError: an id is not in the vocabulary, or what the configuration needs is missing.
    """

    def __init__(
        self,
        config: NoiseConfig,
        *,
        vocab_size: int,
        mask_id: int | None,
        full_stops: Collection[int] = (),
        word_starts: np.ndarray | None = None,
    ) -> None:
        if mask_id is None:
            if config.mask or config.insert:
                raise ValueError("this noise needs a <mask>, which the vocabulary does not have")
            mask_id = 0
        for name, index in (("mask_id", mask_id), *(("full_stops", i) for i in full_stops)):
            if not 0 <= index < vocab_size:
                raise ValueError(f"{name}: {index} is not in a vocabulary of {vocab_size}")
        if config.permute_sentences and not full_stops:
            raise ValueError("permute_sentences needs the ids of the full stops; there are none")
        if word_starts is not None and len(word_starts) != vocab_size:
            raise ValueError(
                f"word_starts knows {len(word_starts)} ids of a vocabulary of {vocab_size}"
            )
        self.config, self.vocab_size, self.mask_id = config, vocab_size, mask_id
        self._is_stop = np.zeros(vocab_size, bool)
        self._is_stop[list(full_stops)] = True
        subword = config.mask_length == "subword"
        self._word_starts = None if subword or word_starts is None else word_starts.astype(bool)
        self._spans = np.cumsum(span_probabilities(config.poisson_lambda))

    def rows(self, rows: Sequence[np.ndarray], draws: Draws) -> list[np.ndarray]:
        """The noised rows, int32 each; arguments and errors are those of `flat`."""
        lengths = np.array([len(row) for row in rows], np.int64)
        if not len(rows):
            return []
        tokens, lengths = self.flat(np.concatenate(rows), lengths, draws)
        return np.split(tokens, np.cumsum(lengths)[:-1])

    def flat(
        self, tokens: np.ndarray, lengths: np.ndarray, draws: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        """Noises rows that lie end to end: tokens int [N], lengths int [B], to the same.

        Raises:
            ValueError: a row has not even `<s>` and `</s>`, or an id is not in the vocabulary.
        """
        config = self.config
        lengths = np.asarray(lengths, np.int64)
        tokens = np.array(tokens, np.int32)  # a copy: it is written to
        if lengths.size and lengths.min() < 2:
            raise ValueError("every row needs its <s> and </s>; one has fewer than 2 tokens")
        if lengths.sum() != len(tokens):
            raise ValueError(f"{len(tokens)} tokens are not rows of {int(lengths.sum())} in all")
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            wrong = int(tokens.max() if tokens.max() >= self.vocab_size else tokens.min())
            raise ValueError(f"the id {wrong} is not in a vocabulary of {self.vocab_size}")
        if config.permute_sentences:
            tokens = self._permute_sentences(tokens, lengths, draws)
        if config.mask:
            tokens, lengths = self._mask(tokens, lengths, draws)
        if config.permute:
            tokens = self._permute_tokens(tokens, lengths, draws)
        if config.insert:
            counts = np.ceil(lengths * config.insert).astype(np.int64)
            tokens, lengths = self._insert(tokens, lengths, counts, draws)
        if config.rotate:
            tokens = self._rotate(tokens, lengths, draws)
        return tokens, lengths

    def _permute_sentences(
        self, tokens: np.ndarray, lengths: np.ndarray, draws: Draws
    ) -> np.ndarray:
        """Sentences in another order; tokens after the last sentence's end stay."""
        first, end = starts(lengths), ends(lengths)
        stop = self._is_stop[tokens]
        stop[end - 2] = True  # so that the last span is a sentence
        # Of several stops in a row the first ends the sentence.
        ending = stop[1:] & ~stop[:-1]
        ending[end[:-1] - 1] = False  # between two rows
        sentence_end = np.flatnonzero(ending) + 2
        if not sentence_end.size:
            return tokens
        count = np.searchsorted(sentence_end, end) - np.searchsorted(sentence_end, first)
        sentence_start = np.empty_like(sentence_end)
        sentence_start[1:] = sentence_end[:-1]
        leading = starts(count)[count > 0]
        sentence_start[leading] = first[count > 0] + 1
        size = sentence_end - sentence_start

        moved = np.ceil(count * 2 * self.config.permute_sentences / 2).astype(np.int64)
        base = np.repeat(starts(count), moved)
        chosen = base + draws.permutations(count, moved)
        again = np.repeat(starts(moved), moved) + draws.permutations(moved, moved)
        order = np.arange(len(size))
        order[chosen] = chosen[again]

        new_size = size[order]
        before = starts(new_size)
        # Where each sentence goes: its row's sentences fill the same stretch as before.
        to = before + np.repeat((sentence_start - before)[leading], count[count > 0])
        within = positions_within(new_size)
        result = tokens.copy()
        result[np.repeat(to, new_size) + within] = tokens[
            np.repeat(sentence_start[order], new_size) + within
        ]
        return result

    def _mask(
        self, tokens: np.ndarray, lengths: np.ndarray, draws: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hides words and spans of words; fairseq's `add_whole_word_mask`."""
        config, rows = self.config, len(lengths)
        first, end = starts(lengths), ends(lengths)
        begins = np.ones(len(tokens), bool)
        if self._word_starts is not None:
            begins = self._word_starts[tokens]
        begins[first] = begins[end - 1] = False
        word = np.flatnonzero(begins)  # position of each word's first token
        words = np.searchsorted(word, end) - np.searchsorted(word, first)
        # In float32, as torch multiplies: it decides what is rounded up.
        budget = np.ceil(words.astype(np.float32) * np.float32(config.mask)).astype(np.int64)
        inserts = np.zeros(rows, np.int64)
        if config.mask_length == "span-poisson":
            size, count, inserts = self._span_lengths(budget, draws)
        else:
            size, count = np.ones(budget.sum(), np.int64), budget
        row = np.repeat(np.arange(rows), count)
        picked = starts(words)[row] + draws.permutations(words, count)
        begin = word[picked]
        random = draws.uniforms(count) < config.mask_random
        # A span of n words ends where the n-th word after its first begins, or at </s>.
        after = picked + size
        inside = after < ends(words)[row]
        until = np.where(inside, word[np.minimum(after, len(word) - 1)], end[row] - 1)

        if config.replace_length == -1:
            self._cover(tokens, begin, until, row, random, rows, draws)
        else:
            if config.replace_length == 1:
                tokens[begin] = self.mask_id
                number = np.bincount(row[random], minlength=rows)
                tokens[begin[random]] = draws.tokens(number, self.vocab_size)
            keep = np.ones(len(tokens), bool)
            from_ = begin + config.replace_length  # the mask stays, unless another span covers it
            depth = np.bincount(from_, minlength=len(tokens) + 1)
            depth -= np.bincount(until, minlength=len(tokens) + 1)
            keep = np.cumsum(depth[:-1]) == 0
            kept = np.concatenate([[0], np.cumsum(keep)])
            tokens, lengths = tokens[keep], kept[end] - kept[first]
        if inserts.any():
            # fairseq passes a share, and rounds the number up again: it may be one more.
            counts = np.ceil(lengths * (inserts / lengths)).astype(np.int64)
            tokens, lengths = self._insert(tokens, lengths, counts, draws)
        return tokens, lengths

    def _span_lengths(
        self, budget: np.ndarray, draws: Draws
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lengths above 0 that sum to each row's budget, their numbers, and those of length 0."""
        rows = len(budget)
        size = draws.spans(budget, self._spans)
        count = budget
        lacking = np.where(np.bincount(_rows(count), size, rows) < budget, budget, 0)
        while lacking.any():  # as fairseq, by as many again
            more = draws.spans(lacking, self._spans)
            order = np.argsort(np.concatenate([_rows(count), _rows(lacking)]), kind="stable")
            size, count = np.concatenate([size, more])[order], count + lacking
            lacking = np.where(np.bincount(_rows(count), size, rows) < budget, budget, 0)
        row = _rows(count)
        running = np.cumsum(size)
        total = np.concatenate([[0], running])
        spent = running - size - total[starts(count)][row]
        left = budget[row] - spent
        used = left > 0
        zero = used & (size == 0)
        some = used & (size > 0)
        inserts = np.bincount(row[zero], minlength=rows)
        return np.minimum(size, left)[some], np.bincount(row[some], minlength=rows), inserts

    def _cover(
        self,
        tokens: np.ndarray,
        begin: np.ndarray,
        until: np.ndarray,
        row: np.ndarray,
        random: np.ndarray,
        rows: int,
        draws: Draws,
    ) -> None:
        """Replaces every token of the spans [begin, until) in place.

        Where spans overlap, fairseq, which lengthens all of them token by token, writes that of
        the earliest beginning last.
        """
        size = until - begin
        value = np.full(int(size.sum()), self.mask_id, np.int32)
        span = np.repeat(np.arange(len(size)), size)
        step = positions_within(size)
        at = np.flatnonzero(random[span])
        # fairseq draws the first token of every random span, then the second of every ...
        at = at[np.lexsort((span[at], step[at], row[span[at]]))]
        value[at] = draws.tokens(np.bincount(row[span[at]], minlength=rows), self.vocab_size)
        written = np.argsort(-begin[span], kind="stable")
        tokens[(begin[span] + step)[written]] = value[written]

    def _insert(
        self, tokens: np.ndarray, lengths: np.ndarray, counts: np.ndarray, draws: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        """Puts `counts` masks into each row; the first few drawn are random tokens."""
        longer = lengths + counts
        at = draws.permutations(np.where(counts, longer - 2, 0), counts) + 1
        at += np.repeat(starts(longer), counts)
        number = np.ceil(counts * self.config.mask_random).astype(np.int64)
        result = np.full(int(longer.sum()), self.mask_id, np.int32)
        old = np.ones(len(result), bool)
        old[at] = False
        result[old] = tokens
        result[at[first_of_each(counts, number)]] = draws.tokens(number, self.vocab_size)
        return result, longer

    def _permute_tokens(self, tokens: np.ndarray, lengths: np.ndarray, draws: Draws) -> np.ndarray:
        """Some tokens in each other's places; fairseq's `add_permuted_noise`."""
        moved = np.ceil(lengths * 2 * self.config.permute / 2).astype(np.int64)
        moved = np.minimum(moved, lengths - 2)
        at = np.repeat(starts(lengths), moved) + 1 + draws.permutations(lengths - 2, moved)
        again = np.repeat(starts(moved), moved) + draws.permutations(moved, moved)
        tokens[at] = tokens[at[again]]
        return tokens

    def _rotate(self, tokens: np.ndarray, lengths: np.ndarray, draws: Draws) -> np.ndarray:
        """Some rows begin at a random token; what was before it follows the end."""
        chosen = draws.uniforms(np.ones_like(lengths)) < self.config.rotate
        highest = np.where(chosen, np.maximum(1, lengths - 1), 0)
        offset = np.ones_like(lengths)
        offset[chosen] = draws.offsets(highest)
        inner = np.maximum(lengths - 2, 0)
        within, row = positions_within(inner), _rows(inner)
        base = starts(lengths)[row] + 1
        result = tokens.copy()
        result[base + within] = tokens[
            base + (within + offset[row] - 1) % np.maximum(inner, 1)[row]
        ]
        return result


def _rows(counts: np.ndarray) -> np.ndarray:
    """The number of its row, for each of `counts` things in every row."""
    return np.repeat(np.arange(len(counts)), counts)
