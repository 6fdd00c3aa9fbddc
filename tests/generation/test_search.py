"""The search against arithmetic: a table in place of a network, and every sequence enumerated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.generation.search import advance, run
from bart_hk.generation.state import Limits, Rules, begin, grow, read_out

BOS, PAD, EOS, UNK = 0, 1, 2, 3
V = 6


def table(seed: int, vocabulary: int = V) -> np.ndarray:
    """Logits for the token after (second last, last): [V, V, V]."""
    return np.random.default_rng(seed).normal(0, 1.5, (vocabulary,) * 3).astype(np.float32)


def decode_with(logits: np.ndarray):
    """A decoder that needs its cache: logits follow from the last token and the one before it,
    which it must find among the slots that `ancestors` gives to its beam."""

    def decode(tokens, step, cache, ancestors):
        cache = cache.at[:, step].set(tokens)  # [B, T, W]
        before = jnp.sum(ancestors * cache[:, None], axis=3)  # [B, W, T]
        before = jnp.where(step > 0, jnp.take(before, jnp.maximum(step - 1, 0), axis=2), EOS)
        after = jnp.moveaxis(jnp.asarray(logits)[before, tokens], -1, 0)  # [V, B, W]
        return after, cache, jnp.ones((*tokens.shape, 1)), None

    return decode


def limits(batch: int, **changes) -> Limits:
    values = {"min_len": 1, "max_len": 3, "temperature": 1.0, "unkpen": 0.0, "free_eos": False}
    values |= {"forced": BOS} | changes
    forced = -1 if values["forced"] is None else values["forced"]
    return Limits(
        min_len=jnp.full(batch, values["min_len"]),
        max_len=jnp.broadcast_to(jnp.asarray(values["max_len"]), (batch,)),
        prefix=jnp.full((batch, 1), forced),
        temperature=jnp.float32(values["temperature"]),
        unkpen=jnp.float32(values["unkpen"]),
        free_eos=jnp.bool_(values["free_eos"]),
    )


def searched(logits: np.ndarray, beam: int, room: int = 8, batch: int = 1, **changes):
    """The hypotheses of every row, in the order in which they ended."""
    ngram = changes.pop("no_repeat_ngram_size", 0)
    tempered = changes.get("temperature", 1.0) != 1.0
    rules = Rules(beam, EOS, PAD, UNK, no_repeat_ngram_size=ngram, tempered=tempered)

    @jax.jit
    def whole(lim):
        cache = jnp.zeros((batch, room, beam), jnp.int32)
        state = begin(jnp.ones(batch, bool), 1, room, cache, rules, EOS)
        return run(state, decode_with(logits), lim, rules)

    state = jax.device_get(whole(limits(batch, **changes)))
    return [read_out(state, row, 1) for row in range(batch)]


def enumerated(logits, max_len, min_len=1, forced=BOS, unkpen=0.0, temperature=1.0, ngram=0):
    """Every sequence that the options allow, with its log probability."""
    scaled = logits.astype(np.float64) / temperature
    log_probs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    log_probs[..., UNK] -= unkpen
    found = {}
    for n in range(max_len + 1):
        for body in itertools.product([t for t in range(V) if t not in (PAD, EOS)], repeat=n):
            starts_wrong = forced is not None and n and body[0] != forced
            too_short = n < min_len and not (forced is not None and n == 0 and max_len == 0)
            whole = (EOS, *body)
            grams = [whole[i : i + ngram] for i in range(len(whole) - ngram + 1)] if ngram else []
            if starts_wrong or too_short or len(set(grams)) < len(grams):
                continue
            history = [EOS, EOS, *body, EOS]
            triples = zip(history, history[1:], history[2:], strict=False)
            found[(*body, EOS)] = sum(log_probs[triple] for triple in triples)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"max_len": 3},
        {"max_len": 2, "forced": None},
        {"max_len": 3, "min_len": 3},
        {"max_len": 2, "min_len": 0, "forced": None},
        {"max_len": 3, "unkpen": 2.5},
        {"max_len": 3, "unkpen": -2.5},
        {"max_len": 3, "temperature": 0.3},
        {"max_len": 4, "no_repeat_ngram_size": 1},
        {"max_len": 4, "no_repeat_ngram_size": 2},
        {"max_len": 4, "no_repeat_ngram_size": 3},
        {"max_len": 0, "min_len": 0},
    ],
    ids=str,
)
def test_a_beam_that_holds_everything_finds_everything(options):
    logits = table(1)
    names = {"no_repeat_ngram_size": "ngram"}
    expected = enumerated(logits, **{names.get(k, k): v for k, v in options.items()})
    beam = len(expected)
    (found,) = searched(logits, beam, **options)
    assert {tuple(h.tokens.tolist()) for h in found} == expected.keys()
    for hypothesis in found:
        total = expected[tuple(hypothesis.tokens.tolist())]
        assert hypothesis.scores[-1] == pytest.approx(total, abs=1e-5)


def by_the_rules(logits, beam, max_len, min_len=1):
    """fairseq's beam search over lists, with the forced <s>: hypotheses in the order of ending."""
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    beams, ended = [((BOS,), float(log_probs[EOS, EOS, BOS]))], []
    for step in range(1, max_len + 1):
        allowed = [EOS] if step == max_len else [t for t in range(V) if t != PAD]
        allowed = [t for t in allowed if t != EOS or step >= min_len]
        candidates = [
            ((*tokens, t), score + float(log_probs[(EOS, *tokens)[-2], tokens[-1], t]))
            for tokens, score in beams
            for t in allowed
        ]
        candidates = sorted(candidates, key=lambda c: -c[1])[: 2 * beam]
        ended += [c for c in candidates[:beam] if c[0][-1] == EOS]
        if len(ended) >= beam:
            break
        beams = [c for c in candidates if c[0][-1] != EOS][:beam]
    return ended[:beam]


@pytest.mark.parametrize("beam", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(6))
def test_only_the_first_w_candidates_end_and_w_hypotheses_are_enough(beam, seed):
    logits = table(seed)
    logits[..., EOS] += 1.0
    for options in ({"max_len": 6}, {"max_len": 6, "min_len": 4}):
        found = searched_by_beam(logits, beam, **options)
        expected = by_the_rules(logits, beam, **options)
        assert [tuple(h.tokens.tolist()) for h in found] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose(
            [h.scores[-1] for h in found], [score for _, score in expected], atol=1e-5
        )


@functools.cache
def _compiled(beam):
    rules = Rules(beam, EOS, PAD, UNK)

    @jax.jit
    def whole(logits, lim):
        state = begin(jnp.ones(1, bool), 1, 8, jnp.zeros((1, 8, beam), jnp.int32), rules, EOS)
        return run(state, decode_with(logits), lim, rules)

    return whole


def searched_by_beam(logits, beam, **changes):
    state = jax.device_get(_compiled(beam)(jnp.asarray(logits), limits(1, **changes)))
    return read_out(state, 0, 1)


def test_each_row_has_its_own_greatest_length():
    logits = table(3)
    logits[..., EOS] -= 9.0
    found = searched(logits, beam=3, batch=3, max_len=jnp.asarray([2, 5, 1]))
    assert [[len(h.tokens) for h in row] for row in found] == [[3] * 3, [6] * 3, [2]]


def test_the_closing_eos_of_match_source_len_is_free():
    logits = table(4)
    paid, free = (
        searched(logits, beam=2, max_len=3, min_len=3, free_eos=flag)[0] for flag in (False, True)
    )
    assert {len(h.tokens) for h in (*paid, *free)} == {4}
    for hypothesis in free:
        assert hypothesis.scores[-1] == hypothesis.scores[-2]
    assert all(h.scores[-1] < h.scores[-2] for h in paid)


def test_hypotheses_of_equal_score_keep_the_order_of_beams_and_tokens():
    # After <s>, tokens 3, 4 and 5 are alike, and so is everything after them.
    logits = np.zeros((V, V, V), np.float32)
    (found,) = searched(logits, beam=3, max_len=2, min_len=2)
    assert [h.tokens.tolist() for h in found] == [[BOS, t, EOS] for t in (0, 3, 4)]


def test_options_that_leave_nothing_end_with_nothing():
    # No token may come twice, and there are too few for the least length.
    (found,) = searched(table(5), beam=2, room=16, max_len=9, min_len=9, no_repeat_ngram_size=1)
    assert found == []


@pytest.mark.parametrize("beam", [1, 3])
def test_stages_change_nothing(beam):
    logits = table(6)
    logits[..., EOS] -= 2.0
    rules = Rules(beam, EOS, PAD, UNK)
    lim, decode = limits(1, max_len=9), decode_with(logits)
    step = jax.jit(functools.partial(advance, decode=decode, limits=lim, rules=rules))
    state = begin(jnp.ones(1, bool), 1, 2, jnp.zeros((1, 2, beam), jnp.int32), rules, EOS)
    while not state.done.all():
        if int(state.step) == state.tokens.shape[1]:
            room = state.tokens.shape[1] + 3
            cache = jnp.pad(state.cache, ((0, 0), (0, 3), (0, 0)))
            state = grow(state, room, cache)
        state = step(state)
    staged = read_out(jax.device_get(state), 0, 1)
    (whole,) = searched(logits, beam, room=10, max_len=9)
    for a, b in zip(staged, whole, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        np.testing.assert_array_equal(a.scores, b.scores)


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("changes", [{}, {"tempered": True}, {"no_repeat_ngram_size": 2}], ids=str)
def test_the_vocabulary_is_never_sorted(beam, changes):
    rules = Rules(beam, EOS, PAD, UNK, **changes)
    vocabulary = 3001

    def decode(tokens, step, cache, ancestors):
        logits = jnp.sin(jnp.arange(vocabulary)[:, None, None] * tokens)
        return logits, cache, jnp.ones((1, beam, 1)), None

    def whole(lim):
        state = begin(jnp.ones(1, bool), 1, 8, None, rules, EOS)
        return run(state, decode, lim, rules)

    program = jax.jit(whole).lower(limits(1)).compile().as_text()
    assert 'custom_call_target="TopK"' in program
    assert not [line for line in program.splitlines() if "sort(" in line and "3001" in line]


def test_rows_that_take_no_part_are_done_from_the_start():
    rules = Rules(2, EOS, PAD, UNK)
    state = begin(jnp.zeros(2, bool), 1, 4, jnp.zeros((2, 4, 2), jnp.int32), rules, EOS)
    state = run(state, decode_with(table(0)), limits(2), rules)
    assert int(state.step) == 0 and not state.ended.any()
