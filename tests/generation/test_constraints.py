"""Constraint states and candidates against plain Python, and against what the words mean."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bart_hk.generation.constraints import (
    advance,
    checked_constraints,
    compile_constraints,
    constrained_candidates,
    initial_states,
    may_end,
    next_tokens,
    pack_constraints,
    satisfied,
    take_states,
    unpack_constraints,
)

phrase_lists = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=5), max_size=4)


# The packed format


def test_the_packed_format_is_fairseqs():
    batch = [[[3, 1, 2], [3], [4, 5, 6, 7]], [], [[1, 8, 9, 10, 1, 4, 11, 12]]]
    packed = pack_constraints(batch)
    assert packed.dtype == np.int64
    assert packed.tolist() == [
        [3, 3, 1, 2, 0, 3, 0, 4, 5, 6, 7, 0],
        [0] * 12,
        [1, 1, 8, 9, 10, 1, 4, 11, 12, 0, 0, 0],
    ]
    assert pack_constraints([[], []]).tolist() == [[0], [0]]
    assert [ids.tolist() for ids in unpack_constraints(packed[0])] == batch[0]


@given(st.lists(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), max_size=4)))
def test_packing_keeps_every_phrase_the_id_0_included(batch):
    unpacked = unpack_constraints(pack_constraints(batch)) if batch else []
    assert [[ids.tolist() for ids in row] for row in unpacked] == batch
    assert all(ids.dtype == np.int32 for row in unpacked for ids in row)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ([[2, 5, 0, 0]], "row 0 of the packed constraints announces 2 phrases"),
        ([[0, 0], [2, 5, 0, 6]], "integers"),  # ragged: not an array of integers
        ([[0, 0, 0, 0], [2, 5, 0, 6]], "row 1 of the packed constraints announces 2 phrases"),
        ([[1, -5, 0]], "row 0 of the packed constraints announces 1 phrases"),
        ([[1.0, 5.0, 0.0]], "must be integers"),
        ([[]], "at least one a row"),
        ([[[1]]], r"not of shape \(1, 1, 1\)"),
    ],
)
def test_what_is_not_packed_is_refused_in_one_line(packed, message):
    array = np.array(packed, object) if message == "integers" else np.array(packed)
    with pytest.raises(ValueError, match=message) as error:
        unpack_constraints(array)
    assert "\n" not in str(error.value)


# What a user gives


def checked(constraints, rows=1, vocabulary=20, never=(1, 2), room=10):
    return checked_constraints(
        constraints, rows=rows, vocabulary=vocabulary, never=never, room=[room] * rows
    )


def test_phrases_are_taken_as_lists_or_packed():
    expected = [[[5, 6], [0]], []]
    for given_as in (
        [[[5, 6], [0]], []],
        [(np.array([5, 6]), (0,)), None],
        pack_constraints([[[5, 6], [0]], []]),
        jnp.asarray(pack_constraints([[[5, 6], [0]], []]).astype(np.int32)),
    ):
        found = checked(given_as, rows=2)
        assert [[ids.tolist() for ids in row] for row in found] == expected
    assert checked([[[3] * 4, [4] * 6]])  # exactly the room there is


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ([[], []], "constraints for 2 inputs, but 1 inputs"),
        ([], "constraints for 0 inputs, but 1 inputs"),
        (np.zeros((3, 1), int), "constraints for 3 inputs, but 1 inputs"),
        ([[[5], []]], "constraint 1 of input 0 is empty"),
        ([[[5, 20]]], "holds the id 20, outside the vocabulary of 20"),
        ([[[-1]]], "holds the id -1"),
        ([[[5, 2, 6]]], "holds the id 2, which no output can contain"),
        ([[[5.5]]], "must be a list of integer ids, not float64"),
        ([[5, 6]], r"constraint 0 of input 0 must be a list of integer ids, .* shape \(\)"),
        ([[["a"]]], "must be a list of integer ids"),
        ([[[1 << 40]]], "holds the id 1099511627776, outside the vocabulary"),
        (5, "must be a list with a list of phrases for each input, .* not 5"),
        ("ab", "must be a list with a list of phrases for each input, .* not 'ab'"),
        ([5], "the constraints of input 0 must be a list of phrases, not 5"),
        (["ab"], "the constraints of input 0 must be a list of phrases, not 'ab'"),
        ([[[3] * 4, [4] * 7]], "have 11 tokens, but its output has room for 10"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(constraints, message):
    with pytest.raises(ValueError, match=message) as error:
        checked(constraints)
    assert "\n" not in str(error.value)


def test_a_row_without_room_is_named():
    with pytest.raises(ValueError, match="constraints of input 1 have 2 tokens, but .* room for 0"):
        checked_constraints([[[3]], [[3, 4]]], rows=2, vocabulary=9, never=(), room=[1, -1])


# States. Phrases over few tokens, so that they overlap, begin alike and hold one another.


def random_phrases(rng, rows, alphabet=3, phrases=4, length=4):
    return [
        [
            rng.integers(0, alphabet, rng.integers(1, length + 1)).astype(np.int32)
            for _ in range(rng.integers(0, phrases + 1))
        ]
        for _ in range(rows)
    ]


def random_streams(rng, phrases, steps, alphabet=3):
    """Tokens [rows, steps]: noise, and phrases with a token or nothing between them."""
    streams = rng.integers(0, alphabet + 1, (len(phrases), steps))
    for stream, row in zip(streams, phrases, strict=True):
        if not row or rng.random() < 0.3:
            continue
        pieces = []
        for i in rng.permutation(len(row)) if rng.random() < 0.5 else range(len(row)):
            pieces += [rng.integers(0, alphabet + 1, rng.integers(0, 3)), row[i]]
        made = np.concatenate(pieces)[:steps]
        at = rng.integers(0, steps - len(made) + 1)
        stream[at : at + len(made)] = made
    return streams.astype(np.int32)


@functools.cache
def stepper():
    @jax.jit
    def step(constraints, states, tokens):
        states = advance(constraints, states, tokens)
        return (
            states,
            satisfied(constraints, states),
            may_end(constraints, states),
            next_tokens(constraints, states),
        )

    return step


def followed(phrases, ordered, streams):
    """bank, finished and offered tokens after each number of tokens of each stream."""
    constraints = compile_constraints(phrases, ordered, len(phrases))
    states = initial_states(constraints, 1)
    seen = [
        jax.device_get(
            (
                satisfied(constraints, states),
                may_end(constraints, states),
                next_tokens(constraints, states),
            )
        )
    ]
    for tokens in streams.T:
        states, *found = jax.device_get(stepper()(constraints, states, tokens[:, None]))
        seen.append(found)
    banks, finished, offered = (np.stack(x, 1)[:, :, 0] for x in zip(*seen, strict=True))
    return banks, finished, offered


def progress_in_order(phrases, text):
    """How many constraint tokens `text` holds, by looking for the phrases one after the other."""
    text, bank, at = list(map(int, text)), 0, 0
    for phrase in (list(map(int, p)) for p in phrases):
        n = len(phrase)
        places = [i for i in range(at, len(text) - n + 1) if text[i : i + n] == phrase]
        if not places:
            begun = [
                k for k in range(n) if k <= len(text) - at and text[len(text) - k :] == phrase[:k]
            ]
            return bank + max(begun), max(begun), phrase
        bank, at = bank + n, places[0] + n
    return bank, 0, None


@pytest.mark.parametrize("seed", range(3))
def test_ordered_states_say_how_far_the_phrases_are_there_in_order(seed):
    rng = np.random.default_rng(seed)
    phrases = random_phrases(rng, 400)
    streams = random_streams(rng, phrases, 24)
    banks, finished, offered = followed(phrases, True, streams)
    for i, row in enumerate(phrases):
        for n in range(streams.shape[1] + 1):
            bank, begun, phrase = progress_in_order(row, streams[i, :n])
            assert banks[i, n] == bank
            assert finished[i, n] == (phrase is None)
            expected = [] if phrase is None else [phrase[begun]]
            if begun and phrase[0] != phrase[begun]:
                expected.append(phrase[0])
            assert [t for t in offered[i, n].tolist() if t >= 0] == expected
    some = np.array([bool(row) for row in phrases])
    assert 0.2 < finished[some, -1].mean() < 0.9
    assert finished[~some].all()


class Unordered:
    """The rules of `UnorderedConstraints` over prefixes of phrases as tuples."""

    def __init__(self, phrases):
        self.wanted = Counter(tuple(map(int, phrase)) for phrase in phrases)
        self.prefixes = {p[:n] for p in self.wanted for n in range(1, len(p) + 1)}
        self.complete: Counter = Counter()
        self.walked: tuple = ()

    def missing(self, prefix):
        """Of the phrases with this prefix, those neither complete nor on the way."""
        alike = [p for p in self.wanted if p[: len(prefix)] == prefix]
        taken = sum(self.complete[p] for p in alike)
        return sum(self.wanted[p] for p in alike) > taken

    def advance(self, token):
        further = (*self.walked, token)
        if further in self.prefixes and self.missing(further):
            self.walked = further
            return
        for n in range(len(self.walked), 0, -1):
            prefix = self.walked[:n]
            if self.complete[prefix] < self.wanted[prefix]:
                self.complete[prefix] += 1
                break
        again = (token,)
        self.walked = again if again in self.prefixes and self.missing(again) else ()

    @property
    def bank(self):
        return sum(len(p) * n for p, n in self.complete.items()) + len(self.walked)

    @property
    def finished(self):
        here = self.complete + Counter([self.walked] if self.walked in self.wanted else [])
        return all(here[p] >= n for p, n in self.wanted.items())

    @property
    def offered(self):
        on = {p[-1] for p in self.prefixes if p[:-1] == self.walked}
        return on | {p[0] for p in self.prefixes}


def fit_apart(phrases, text):
    """Can all the phrases be found in `text` without overlap, in any order?"""
    if not phrases:
        return True
    first, n = phrases[0], len(phrases[0])
    return any(
        text[i : i + n] == first and fit_apart(phrases[1:], text[:i] + ["#"] * n + text[i + n :])
        for i in range(len(text) - n + 1)
    )


@pytest.mark.parametrize("seed", range(3))
def test_unordered_states_follow_the_rules_and_never_end_too_early(seed):
    rng = np.random.default_rng(seed)
    phrases = random_phrases(rng, 400)
    streams = random_streams(rng, phrases, 24)
    banks, finished, offered = followed(phrases, False, streams)
    too_late = 0
    for i, row in enumerate(phrases):
        rule = Unordered(row)
        for n in range(streams.shape[1] + 1):
            if n:
                rule.advance(int(streams[i, n - 1]))
            assert banks[i, n] == rule.bank
            assert finished[i, n] == rule.finished
            tokens = [t for t in offered[i, n].tolist() if t >= 0]
            assert set(tokens) == rule.offered and len(tokens) == len(rule.offered)
        there = fit_apart([p.tolist() for p in row], streams[i].tolist())
        assert there or not finished[i, -1]
        too_late += there and not finished[i, -1]
    some = np.array([bool(row) for row in phrases])
    assert 0.1 < finished[some, -1].mean() < 0.9
    assert too_late < 0.1 * len(phrases)  # the class says why there are any


def test_unordered_phrases_with_something_else_between_them_are_always_found():
    rng = np.random.default_rng(5)
    phrases = random_phrases(rng, 300, phrases=3)
    streams = np.full((len(phrases), 24), 9, np.int32)
    for stream, row in zip(streams, phrases, strict=True):
        text = [t for i in rng.permutation(len(row)) for t in (9, *row[i])]
        stream[: len(text)] = text
    banks, finished, _ = followed(phrases, False, streams)
    assert finished[:, -1].all()
    assert (banks[:, -1] == [sum(map(len, row)) for row in phrases]).all()


@pytest.mark.parametrize(
    ("ordered", "phrases", "text", "banks"),
    [
        # fairseq forgets the complete phrase, and can then not count "6 7": 1 2 0 0 0.
        (True, [[5], [6, 7]], [5, 6, 8, 6, 7], [1, 2, 1, 2, 3]),
        # fairseq begins again at the last token alone: 1 2 1 0.
        (True, [[5, 5, 6]], [5, 5, 5, 6], [1, 2, 2, 3]),
        # fairseq holds that "5 6" was begun already: 1 0 0.
        (False, [[5, 6]], [5, 5, 6], [1, 1, 2]),
        # Every phrase once for each time it was given; the longest that is complete counts.
        (False, [[5], [5, 6], [5, 6, 7]], [5, 6, 8, 5, 9, 5, 6, 7], [1, 2, 2, 3, 3, 4, 5, 6]),
        (False, [[5], [5]], [5, 5, 5], [1, 2, 2]),
        # The id 0, which separates phrases in fairseq's format.
        (True, [[0, 0], [0]], [0, 0, 0], [1, 2, 3]),
        (False, [[0, 4], [0]], [0, 0, 4], [1, 2, 3]),
    ],
)
def test_states_where_fairseqs_are_wrong_and_where_it_is_easy_to_be(ordered, phrases, text, banks):
    rows = [[np.array(phrase) for phrase in phrases]]
    found, finished, _ = followed(rows, ordered, np.array([text], np.int32))
    assert found[0].tolist() == [0, *banks]
    assert finished[0, -1] == (banks[-1] == sum(map(len, phrases)))
    assert not finished[0, 0]


# Candidates


def by_turns(banked, beam):
    """Candidates (bank, score, beam, token), each once, by turns of their banks."""
    by_bank = {}
    for candidate in sorted(set(banked), key=lambda c: (-c[1], c[2], c[3])):
        by_bank.setdefault(candidate[0], []).append(candidate)
    turns = []
    while any(by_bank.values()):
        turns += [by_bank[bank].pop(0) for bank in sorted(by_bank, reverse=True) if by_bank[bank]]
    return turns[: 2 * beam]


@functools.cache
def selector(vocabulary, eos):
    @jax.jit
    def select(constraints, states, scores):  # float32 [B, W, V], cumulative
        open_ended = may_end(constraints, states)[..., None]
        scores = jnp.where((jnp.arange(vocabulary) == eos) & ~open_ended, -jnp.inf, scores)
        best, tokens = jax.lax.top_k(scores, min(2 * scores.shape[1], vocabulary))

        def score_of(ids):
            return jnp.take_along_axis(scores, ids, axis=2)

        return constrained_candidates(constraints, states, best, tokens, score_of)

    return select


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("spread", [1.0, 80.0])
def test_candidates_are_taken_by_turns_of_their_banks(ordered, beam, spread):
    batch, vocabulary, eos = 24, 12, 11
    rng = np.random.default_rng(beam)
    phrases = random_phrases(rng, batch, alphabet=8)
    assert any(not row for row in phrases)
    constraints = compile_constraints(phrases, ordered, batch)
    states, total = initial_states(constraints, beam), np.zeros((batch, beam), np.float32)
    total[:, 1:] = -np.inf
    several = 0
    for step in range(10):
        logits = rng.normal(0, spread, (batch, beam, vocabulary))
        log_probs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
        log_probs[rng.random(log_probs.shape) < 0.1] = -np.inf
        scores = (total[..., None] + log_probs).astype(np.float32)
        bank_after = np.stack(  # [B, W, V]
            [
                satisfied(constraints, advance(constraints, states, jnp.full((batch, beam), t)))
                for t in range(vocabulary)
            ],
            axis=2,
        )
        ends = np.asarray(may_end(constraints, states))
        offered = np.asarray(next_tokens(constraints, states))
        selected = selector(vocabulary, eos)(constraints, states, scores)
        new_scores, tokens, beams = map(np.asarray, selected[:3])
        for b in range(batch):
            own = scores[b].copy()
            own[~ends[b], eos] = -np.inf
            flat = sorted(np.ndindex(own.shape), key=lambda wt: -own[wt])
            pool = flat[: 2 * beam] + [(w, int(own[w].argmax())) for w in range(beam)]
            pool += [(w, t) for w in range(beam) for t in offered[b, w].tolist() if t >= 0]
            pool = [(w, t) for w, t in pool if own[w, t] > -np.inf]
            expected = by_turns([(bank_after[b, w, t], own[w, t], w, t) for w, t in pool], beam)
            n = len(expected)
            found = zip(beams[b].tolist(), tokens[b].tolist(), strict=True)
            assert list(found)[:n] == [(w, t) for _, _, w, t in expected]
            assert new_scores[b].tolist() == [c[1] for c in expected] + [-np.inf] * (2 * beam - n)
            several += len({c[0] for c in expected}) > 1
            if not phrases[b]:  # the plain beam
                plain = [wt for wt in flat if own[wt] > -np.inf][: 2 * beam]
                assert [(w, t) for _, _, w, t in expected] == plain
        banks = satisfied(constraints, selected[3])
        chosen = np.asarray(bank_after)[np.arange(batch)[:, None], beams, tokens]
        alive = new_scores > -np.inf
        np.testing.assert_array_equal(np.asarray(banks)[alive], chosen[alive])
        # Those that do not end go on.
        place = np.argsort(tokens == eos, axis=1, kind="stable")[:, :beam]
        states = take_states(selected[3], jnp.asarray(place))
        total = np.take_along_axis(new_scores, place, 1)
        if step == 0:
            assert (beams[alive] == 0).all()
    assert several > 100 or beam == 1


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("beam", [1, 4])
def test_every_step_brings_the_first_beam_on_until_all_phrases_are_there(ordered, beam):
    batch, vocabulary, eos = 16, 40, 39
    rng = np.random.default_rng(7)
    phrases = random_phrases(rng, batch, alphabet=38, phrases=4, length=4)
    constraints = compile_constraints(phrases, ordered, batch)
    needed = np.array([sum(map(len, row)) for row in phrases])
    states = initial_states(constraints, beam)
    total = jnp.zeros((batch, beam)).at[:, 1:].set(-jnp.inf)
    for step in range(1, 18):
        scores = total[..., None] + rng.normal(-9, 3, (batch, beam, vocabulary))
        selected = selector(vocabulary, eos)(constraints, states, scores.astype(jnp.float32))
        new_scores, tokens, _, after = selected
        first = take_states(after, jnp.zeros((batch, 1), jnp.int32))
        banks = np.asarray(satisfied(constraints, first))[:, 0]
        assert (banks >= np.minimum(step, needed)).all()
        place = jnp.argsort(tokens == eos, axis=1, stable=True)[:, :beam]
        states, total = take_states(after, place), jnp.take_along_axis(new_scores, place, 1)
    assert may_end(constraints, first).all()


def test_the_first_step_has_one_beam_and_may_not_end_without_the_phrases():
    constraints = compile_constraints([[np.array([3])], []], False, 3)
    states = initial_states(constraints, 2)
    assert may_end(constraints, states).tolist() == [[False] * 2, [True] * 2, [True] * 2]
    scores = jnp.asarray(np.log([0.1, 0.2, 0.05, 0.05, 0.6]), jnp.float32)
    scores = jnp.stack([jnp.tile(scores, (3, 1)), jnp.full((3, 5), -jnp.inf)], axis=1)
    _, tokens, beams, after = selector(5, 4)(constraints, states, scores)
    assert tokens.tolist()[0] == [3, 1, 0, 2]  # bank 1, then the best of bank 0; 4 is </s>
    assert tokens.tolist()[1] == tokens.tolist()[2] == [4, 1, 0, 2]
    assert (beams == 0).all()
    assert satisfied(constraints, after).tolist() == [[1, 0, 0, 0], [0] * 4, [0] * 4]


@pytest.mark.parametrize("ordered", [True, False])
def test_other_phrases_of_about_the_same_size_compile_nothing_again(ordered):
    @jax.jit
    def program(constraints):
        states = advance(constraints, initial_states(constraints, 2), jnp.ones((3, 2), jnp.int32))
        return may_end(constraints, states), next_tokens(constraints, states)

    rng = np.random.default_rng(0)
    for rows in (1, 2, 3):
        for words in (1, 4, 7):
            phrases = [[rng.integers(3, 100, words), rng.integers(3, 100, 8)] for _ in range(rows)]
            program(compile_constraints(phrases, ordered, 3))
    assert program._cache_size() == 1
